"""Bags: series and studies that have labels which their slices lack.

1. A bag has the label of its series or study for each class of which none of its slices
   has a label. A study has it only if none of its series has one either.
2. All slices of the series or study are in the bag, in the order of the store.

This is multiple instance learning with max pooling: the logit of a bag is the maximum
of its slices' logits, since a bag is positive if one of its slices is.

Source:
    Wang et al., "Revisiting multiple instance neural networks" (2018), mi-Net with max
    pooling. Campanella et al., "Clinical-grade computational pathology using weakly
    supervised deep learning on whole slide images" (2019), train on the highest tile of
    a slide.

Shape letters: N slices of the store, M slices of all bags one after another, D bags,
G slices drawn from a bag, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.labels import CLASSES
from ichfast.store.store import Store
from ichfast.store.tables import BAG_LABELS

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bags:
    """Some bags of a store."""

    slices_M: Integers
    """Store positions of the slices, bag by bag; a slice may be in two bags."""

    first_D: Integers
    """Index in `slices_M` of each bag's first slice."""

    labels_DK: npt.NDArray[np.float32]
    """0, 1 or NaN; some label of each bag is known."""

    def __len__(self) -> int:
        return len(self.first_D)

    @property
    def count_D(self) -> Integers:
        """Number of slices of each bag."""
        return np.diff(self.first_D, append=len(self.slices_M))

    def within(self, slices_N: Integers) -> Bags:
        """The bags with the slices of a part of the store only; without empty ones.

        Args:
            slices_N: store positions, any order.
        """
        is_kept_M = np.isin(self.slices_M, slices_N)
        bag_M = np.repeat(np.arange(len(self)), self.count_D)[is_kept_M]
        bags, first = np.unique(bag_M, return_index=True)
        return Bags(self.slices_M[is_kept_M], first, self.labels_DK[bags])

    def draw(self, num_slices: int, rng: np.random.Generator) -> Integers:
        """Draw slices of each bag, one from each of equal parts along its axis.

        Args:
            num_slices: G. A bag with fewer slices has some of them several times.
            rng: draws the place within a part.

        Returns:
            Store positions, shape (D, G).
        """
        part_G = np.arange(num_slices + 1)
        edge_DG = self.count_D[:, np.newaxis] * part_G // num_slices
        start_DG, end_DG = edge_DG[:, :-1], edge_DG[:, 1:]
        place_DG = rng.integers(start_DG, np.maximum(end_DG, start_DG + 1))
        return self.slices_M[self.first_D[:, np.newaxis] + place_DG]

    def highest(
        self, positions_N: Integers, values_NK: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """The maximum over all slices of each bag, shape (D, K).

        Args:
            positions_N: store positions, rising; all slices of the bags are there.
            values_NK: a row for each.
        """
        rows_M = np.searchsorted(positions_N, self.slices_M)
        return np.maximum.reduceat(values_NK[rows_M], self.first_D, axis=0)


NO_BAGS = Bags(
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty((0, len(CLASSES)), np.float32),
)


def find_bags(store: Store) -> Bags:
    """Find all bags of a store, series before studies."""
    labels_of = {
        bag: store.table[list(columns)]
        for bag, columns in BAG_LABELS.items()
        if store.table[list(columns)].notna().any(axis=None)
    }
    if not labels_of:
        return NO_BAGS
    is_known_NK = ~np.isnan(store.labels_NK())
    found = []
    for bag, labels in labels_of.items():
        labels_NK = labels.to_numpy(np.float32, na_value=np.nan)
        first_D, count_D = bag_starts(store, bag)
        lacks_DK = ~np.logical_or.reduceat(is_known_NK, first_D, axis=0)
        labels_DK = np.where(lacks_DK, labels_NK[first_D], np.float32(np.nan))
        is_bag_D = ~np.isnan(labels_DK).all(axis=1)
        slices_M = np.flatnonzero(np.repeat(is_bag_D, count_D))
        starts = np.cumsum(count_D[is_bag_D]) - count_D[is_bag_D]
        found.append(Bags(slices_M, starts, labels_DK[is_bag_D]))
        is_known_NK |= ~np.isnan(labels_NK)
    return _joined(found)


def bag_starts(store: Store, bag: str) -> tuple[Integers, Integers]:
    """Position of the first slice of each series or study, and its number of slices.

    Args:
        store: its slices are sorted by patient, study and series.
        bag: ``series`` or ``study``.
    """
    columns = ("patient", "study", "series")
    ids = store.table[list(columns[: columns.index(bag) + 1])]
    first_D = np.flatnonzero((ids != ids.shift()).any(axis=1))
    return first_D, np.diff(first_D, append=len(store))


def _joined(parts: list[Bags]) -> Bags:
    offsets = np.cumsum([0, *(len(each.slices_M) for each in parts)])
    return Bags(
        np.concatenate([each.slices_M for each in parts]),
        np.concatenate(
            [
                each.first_D + offset
                for each, offset in zip(parts, offsets, strict=False)
            ]
        ),
        np.concatenate([each.labels_DK for each in parts]),
    )
