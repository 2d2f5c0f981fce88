"""A study's drawing puts labels and probabilities where they belong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.evaluation.study_cases import SeriesOfCase, choose_studies
from ichfast.report.cards import CARD_WINDOWS
from ichfast.report.studies import FIELD, draw_series, heights, make_study_groups
from tests.evaluation.test_study_cases import one_study


def a_series(**changed: object) -> SeriesOfCase:
    fields: dict[str, object] = {
        "place_Z": np.array([0.0, 0.25, 0.5, 1.0]),
        "probs_Z": np.array([0.01, 0.5, 0.9, 0.0]),
        "labels_Z": np.array([0.0, 1.0, 1.0, np.nan]),
        "prob": 0.5,
        "shown": 2,
        "number": 1,
    }
    return SeriesOfCase(**(fields | changed))  # type: ignore[arg-type]


def corners_of(line: str) -> npt.NDArray[np.float64]:
    return np.array([corner.split(",") for corner in line.split()], dtype=float)


def test_probabilities_rise_to_the_top_in_steps_of_log_odds() -> None:
    bottom, middle, top = heights(np.array([0.0, 0.5, 1.0]))
    assert (bottom, top) == (FIELD.bottom, FIELD.top)
    assert middle == pytest.approx((FIELD.bottom + FIELD.top) / 2)
    nine, ninety = heights(np.array([1 / 10, 10 / 11]))
    assert heights(np.array([1 / 82]))[0] - nine == pytest.approx(nine - middle)
    assert ninety < middle


def test_slices_are_drawn_at_their_places_with_the_labels_between() -> None:
    drawing = draw_series(a_series(), threshold=0.01, head_prob=0.9)
    x_Z, y_Z = corners_of(drawing.line).T
    step = (FIELD.right - FIELD.left) / (4 / 3)
    first = FIELD.left + step / 6
    np.testing.assert_allclose(x_Z, first + step * a_series().place_Z, atol=0.05)
    np.testing.assert_allclose(y_Z, heights(a_series().probs_Z), atol=0.05)
    ((left, width),) = drawing.labelled
    assert left == pytest.approx(first + step / 8)
    assert left + width == pytest.approx(first + step * 3 / 4)
    parts = draw_series(
        a_series(labels_Z=np.array([1.0, 0.0, np.nan, 1.0])), 0.01, None
    ).labelled
    assert [left for left, _ in parts] == pytest.approx(
        [FIELD.left, first + step * 3 / 4]
    )
    assert sum(parts[-1]) == pytest.approx(FIELD.right)
    assert drawing.shown == pytest.approx((x_Z[2], y_Z[2]), abs=0.05)
    assert drawing.threshold == heights(np.array([0.01]))[0]
    assert drawing.head == heights(np.array([0.9]))[0]


def test_a_single_slice_fills_the_field() -> None:
    one = a_series(
        place_Z=np.array([0.5]),
        probs_Z=np.array([1.0]),
        labels_Z=np.array([1.0]),
        shown=0,
    )
    drawing = draw_series(one, threshold=0.5, head_prob=None)
    assert drawing.labelled == [(FIELD.left, FIELD.right - FIELD.left)]
    assert drawing.head is None
    assert drawing.shown == pytest.approx(((FIELD.left + FIELD.right) / 2, FIELD.top))


def test_cards_say_what_was_missed() -> None:
    table = one_study()
    table.loc[[1, 6, 7], "label_any"] = 1.0
    cases = choose_studies(table, sensitivity=1.0)
    assert cases is not None
    shown: list[str] = []

    def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
        shown.append(slice_id)
        return np.full((8, 6), 1064, dtype=np.uint16)

    positive, negative = make_study_groups(cases, slice_of=slice_of, has_head=False)
    assert positive.heading == "With hemorrhage, lowest probability first (1 of 1)"
    assert negative.heading == "Without hemorrhage, highest probability first (1 of 1)"
    (card,) = positive.cards
    assert (card.outcome, card.is_right, card.prob) == ("found", True, 0.95)
    assert card.head_prob is card.drawing.head is None
    assert (card.classes, card.num_slices) == (["subdural"], 4)
    assert card.series == "series 2 of 2"
    assert card.ids == "slice ID_000000006, study S, patient P"
    assert tuple(card.pictures) == CARD_WINDOWS
    assert negative.cards[0].outcome == "rightly left alone"
    assert negative.cards[0].series == ""
    assert shown == ["ID_000000006", "ID_000000008"]
    with_head, _ = make_study_groups(cases, slice_of=slice_of, has_head=True)
    assert with_head.cards[0].head_prob == 0.8
    assert with_head.cards[0].drawing.head is not None
