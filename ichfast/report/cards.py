"""The cards of a report: a slice with its pictures, heat map and probabilities.

Shape letters: B distinct slices, K classes, H rows, W columns, h and w rows and columns
of the model's feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.cases import CaseGroup
from ichfast.evaluation.curves import OperatingPoint
from ichfast.evaluation.predictions import labels_NK, probs_NK
from ichfast.labels import CLASSES
from ichfast.report.heatmaps import heatmap_png
from ichfast.report.pictures import data_uri, slice_jpeg
from ichfast.windows import PRESETS

CARD_WINDOWS = ("brain", "subdural")
"""Windows of the pictures, names of `windows.PRESETS`."""

CARD_SIDE = 256
"""Longest side of a picture, in pixels, which keeps the page to a few MB."""

SliceOf = Callable[[str], npt.NDArray[np.uint16]]
"""Returns the stored pixels of a slice id, shape (H, W)."""

ActivationsOf = Callable[[Sequence[str]], npt.NDArray[np.float32] | None]
"""Returns the activation maps of B slice ids, shape (B, K, h, w); None where the
backbone has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseCard:
    """A slice in a group of cases."""

    outcome: str
    """The outcome at the operating point, such as ``missed``."""
    is_right: bool
    pictures: Mapping[str, str]
    """Pictures by window name, as data URIs."""
    heatmap: str | None
    """Heat map of the group's class, as a data URI; None where the backbone has none.
    """
    probabilities: list[tuple[str, float, bool]]
    """Name, probability, and whether its label is 1, for each class."""
    ids: str
    """Slice, study and patient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardGroup:
    """The cards of a group that `evaluation.cases.choose_cases` chose."""

    class_name: str
    is_worst: bool
    cards: list[CaseCard]


def make_cards(
    groups: Iterable[CaseGroup],
    points: Mapping[str, OperatingPoint],
    *,
    slice_of: SliceOf,
    activations_of: ActivationsOf,
) -> list[CardGroup]:
    """Draw the slices of each group; a slice in several groups is drawn once.

    Args:
        groups: at least one group of slices.
        points: operating points by class; a class may have none.
        slice_of: called once for each slice.
        activations_of: called once, for all slices.
    """
    groups = list(groups)
    slice_ids = sorted({n for group in groups for n in group.rows["slice_id"]})
    maps_BKhw = activations_of(slice_ids)
    maps = {} if maps_BKhw is None else dict(zip(slice_ids, maps_BKhw, strict=True))
    stored = {slice_id: slice_of(slice_id) for slice_id in slice_ids}
    pictures = {slice_id: slice_pictures(stored[slice_id]) for slice_id in slice_ids}
    shapes = {slice_id: stored[slice_id].shape for slice_id in slice_ids}
    return [
        CardGroup(
            class_name=group.class_name,
            is_worst=group.is_worst,
            cards=_cards(group, points.get(group.class_name), pictures, maps, shapes),
        )
        for group in groups
    ]


def _cards(
    group: CaseGroup,
    point: OperatingPoint | None,
    pictures: Mapping[str, Mapping[str, str]],
    maps: Mapping[str, npt.NDArray[np.float32]],
    shapes: Mapping[str, tuple[int, int]],
) -> list[CaseCard]:
    """Make the cards of a group; pictures, maps (or none) and shapes by slice id."""
    k = CLASSES.index(group.class_name)
    probs, is_labelled = probs_NK(group.rows), labels_NK(group.rows) == 1
    keys = group.rows[["slice_id", "study", "patient"]].astype(str).to_numpy()
    cards = []
    for n, (slice_id, study, patient) in enumerate(keys):
        map_png = heatmap_png(maps[slice_id][k], shapes[slice_id]) if maps else None
        is_called = point is not None and probs[n, k] >= point.threshold
        cards.append(
            CaseCard(
                outcome=outcome_of(is_called=is_called, is_labelled=is_labelled[n, k]),
                is_right=is_called == is_labelled[n, k],
                pictures=pictures[slice_id],
                heatmap=data_uri("png", map_png) if map_png else None,
                probabilities=list(zip(CLASSES, probs[n], is_labelled[n], strict=True)),
                ids=f"slice {slice_id}, study {study}, patient {patient}",
            )
        )
    return cards


def slice_pictures(stored_HW: npt.NDArray[np.uint16]) -> dict[str, str]:
    """Pictures of a slice in each of `CARD_WINDOWS`, as data URIs.

    Args:
        stored_HW: as in the store, HU + 1024, shape (H, W).
    """
    return {
        name: data_uri("jpeg", slice_jpeg(stored_HW, PRESETS[name], max_side=CARD_SIDE))
        for name in CARD_WINDOWS
    }


def outcome_of(*, is_called: bool, is_labelled: bool) -> str:
    """The outcome of a call in words.

    Args:
        is_called: whether the slice or study is called positive.
        is_labelled: whether it is.
    """
    if is_labelled:
        return "found" if is_called else "missed"
    return "false alarm" if is_called else "rightly left alone"
