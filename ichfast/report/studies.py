"""The studies of a report: a drawing along the series and the pictures of one slice.

The drawing is given as numbers, which the page's template writes as SVG: it takes the
page's colours, light or dark. Its vertical axis is the log-odds of the probability, as
those of missed studies are often near 0.

Shape letters: Z slices of a series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.logits import logit
from ichfast.evaluation.study_cases import SeriesOfCase, StudyCase, StudyCases
from ichfast.labels import CLASSES
from ichfast.report.cards import SliceOf, outcome_of, slice_pictures

Floats = npt.NDArray[np.float64]

MIN_PROB = 0.001
"""Probabilities are drawn no nearer to 0 and 1 than this."""

TICKS = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
"""Probabilities that the vertical axis names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """The size of a drawing and the edges of its field, which are near pixels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Height and text of each of `TICKS`."""
        return [
            (float(height), f"{prob:g}")
            for height, prob in zip(heights(np.array(TICKS)), TICKS, strict=True)
        ]


FIELD = Field(width=330, height=132, left=34, right=326, top=6, bottom=116)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesDrawing:
    """Places of what is drawn along a series, in units of `FIELD`."""

    labelled: list[tuple[float, float]]
    """Left edge and width of each stretch of slices that have the label."""
    line: str
    """Corners of the probabilities, as SVG writes them."""
    shown: tuple[float, float]
    """The slice of the pictures."""
    threshold: float
    """Height of the study's threshold."""
    head: float | None
    """Height of the probability that the head gives the series; None without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyCard:
    """A study to look at."""

    outcome: str
    is_right: bool
    prob: float
    """Probability of any."""
    head_prob: float | None
    """Probability that the head gives the series; None without a head."""
    classes: list[str]
    """The subtypes that the study has."""
    num_slices: int
    series: str
    """Which series is shown, such as ``series 1 of 2``; empty for the only one."""
    drawing: SeriesDrawing
    pictures: Mapping[str, str]
    """Pictures by window name, as data URIs."""
    ids: str
    """Slice, study and patient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyGroup:
    """Studies with one label."""

    heading: str
    cards: list[StudyCard]


def make_study_groups(
    cases: StudyCases, *, slice_of: SliceOf, has_head: bool
) -> list[StudyGroup]:
    """Draw the studies to look at, without empty groups.

    Args:
        cases: the studies.
        slice_of: called once for each study.
        has_head: whether the probability of a series is that of a head.
    """

    def cards(studies: Sequence[StudyCase]) -> list[StudyCard]:
        threshold = cases.point.threshold
        return [_card(case, threshold, slice_of, has_head) for case in studies]

    point = cases.point
    groups = (
        ("With hemorrhage, lowest", cases.positive, point.found + point.missed),
        (
            *("Without hemorrhage, highest", cases.negative),
            point.false_alarms + point.left_alone,
        ),
    )
    return [
        StudyGroup(
            heading=f"{kind} probability first ({len(studies)} of {count:,})",
            cards=cards(studies),
        )
        for kind, studies, count in groups
        if studies
    ]


def _card(
    case: StudyCase, threshold: float, slice_of: SliceOf, has_head: bool
) -> StudyCard:
    is_labelled = case.labels_K[0] == 1
    slice_id, study, patient = map(str, case.row[["slice_id", "study", "patient"]])
    head_prob = case.series.prob if has_head else None
    name = f"series {case.series.number} of {case.num_series}"
    return StudyCard(
        outcome=outcome_of(is_called=case.is_called, is_labelled=is_labelled),
        is_right=case.is_called == is_labelled,
        prob=float(case.probs_K[0]),
        head_prob=head_prob,
        classes=[
            name
            for name, label in zip(CLASSES[1:], case.labels_K[1:], strict=True)
            if label == 1
        ],
        num_slices=len(case.series.place_Z),
        series=name if case.num_series > 1 else "",
        drawing=draw_series(case.series, threshold, head_prob),
        pictures=slice_pictures(slice_of(slice_id)),
        ids=f"slice {slice_id}, study {study}, patient {patient}",
    )


def draw_series(
    series: SeriesOfCase, threshold: float, head_prob: float | None
) -> SeriesDrawing:
    """Place labels and probabilities along a series.

    Args:
        series: what is drawn, from the lowest slice on.
        threshold: probability from which a study is called.
        head_prob: probability that the head gives the series; None without one.
    """
    place_Z = series.place_Z
    # The field ends half a slice beyond the lowest and the highest one.
    half = 0.5 / max(len(place_Z) - 1, 1)
    scale = (FIELD.right - FIELD.left) / (1 + 2 * half)
    middle_E = (place_Z[1:] + place_Z[:-1]) / 2
    edge_E = np.concatenate([[-half], middle_E, [1 + half]])
    x_Z, edge_E = (FIELD.left + (each + half) * scale for each in (place_Z, edge_E))
    y_Z = heights(series.probs_Z)
    # A stretch begins or ends at an edge between slices, or at an end of the field.
    change = np.flatnonzero(np.diff(series.labels_Z == 1, prepend=False, append=False))
    return SeriesDrawing(
        labelled=[
            (float(edge_E[first]), float(edge_E[end] - edge_E[first]))
            for first, end in zip(change[::2], change[1::2], strict=True)
        ],
        line=" ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_Z, y_Z, strict=True)),
        shown=(float(x_Z[series.shown]), float(y_Z[series.shown])),
        threshold=float(heights(np.array([threshold]))[0]),
        head=None if head_prob is None else float(heights(np.array([head_prob]))[0]),
    )


def heights(probs_Z: Floats) -> Floats:
    """The heights of probabilities in a drawing, from the top; shape (Z,)."""
    limit = logit(np.array([MIN_PROB]))
    clipped_Z = np.clip(probs_Z, MIN_PROB, 1 - MIN_PROB)
    share_Z: Floats = (logit(clipped_Z) - limit) / (-2 * limit)
    return FIELD.bottom - share_Z * (FIELD.bottom - FIELD.top)
