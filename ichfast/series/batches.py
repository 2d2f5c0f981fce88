"""Series of arrays, and padded batches of them.

Promises:

1. The slices of a series are in the order of a store: by position along the normal,
   then by instance number. Slices without a position are last.
2. A series of more than `max_slices` slices is sampled evenly, its first and last slice
   included. Its labels are those of all its slices.
3. The order of an epoch depends on seed and epoch only, and has each series once.

Shape letters: N slices, S series, B series of the batch, Z slices of the longest
series, M slices of all series or sampled slices, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ichfast.series.config import SeriesConfig
from ichfast.store.tables import ORDER

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

Z_UNIT_MM = 100.0
"""Unit of the position ``z``, mm: about half a head, so that values are near 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesArrays:
    """Slices and the series that they make."""

    features_ND: npt.NDArray[np.floating]
    """Pooled features of the backbone, float16 or float32."""

    labels_NK: Floats
    """0, 1 or NaN."""

    position_mm_N: npt.NDArray[np.float64]
    """Slice positions, mm; NaN where unknown."""

    rows: Sequence[Integers]
    """For each series its rows in the arrays, in the order of its slices."""

    series_labels_SK: Floats
    """Labels of the series themselves, 0, 1 or NaN."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows_M(self) -> Integers:
        """The rows of all series, one series after another."""
        return np.concatenate([np.empty(0, np.int64), *self.rows])

    @property
    def first_S(self) -> Integers:
        """Index in `rows_M` of the first slice of each series."""
        length_S = np.array([len(rows) for rows in self.rows], dtype=np.int64)
        return np.cumsum(length_S) - length_S

    @property
    def bag_labels_SK(self) -> Floats:
        """Labels of the classes that no slice of a series has a label of, else NaN."""
        is_known_MK = ~np.isnan(self.labels_NK[self.rows_M])
        is_known_SK = np.logical_or.reduceat(is_known_MK, self.first_S, axis=0)
        return np.where(is_known_SK, np.float32(np.nan), self.series_labels_SK)

    @property
    def targets_SK(self) -> Floats:
        """What the series logits learn: the label of the series, else of its slices.

        The maximum over the slices is missing if the label of one is; else the series
        with a label would be the positive ones.
        """
        labels_MK = self.labels_NK[self.rows_M]
        highest_SK = np.maximum.reduceat(labels_MK, self.first_S, axis=0)
        is_known_SK = ~np.isnan(self.series_labels_SK)
        return np.where(is_known_SK, self.series_labels_SK, highest_SK)

    @property
    def judged_labels(self) -> npt.NDArray[np.float64]:
        """The labels of all slices, then of the series that alone have one, else NaN.

        A row for each row of `judged`.
        """
        labels = [self.labels_NK[self.rows_M], self.bag_labels_SK]
        return np.concatenate(labels).astype(np.float64)

    def judged(self, logits_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The logits of all slices, then for each series the highest of its slices."""
        logits_MK = logits_NK[self.rows_M]
        highest_SK = np.maximum.reduceat(logits_MK, self.first_S, axis=0)
        return np.concatenate([logits_MK, highest_SK])


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesBatch:
    """Series of different lengths, padded at the end to the longest."""

    features_BZD: Tensor
    """float32, 0 in the padding."""

    is_slice_BZ: Tensor
    """bool, False for padding."""

    position_BZ: Tensor
    """float32; see `SeriesConfig.position`."""

    targets_BZK: Tensor
    """float32, NaN where unknown and in the padding."""

    bag_targets_BK: Tensor
    """float32, NaN unless only the series has a label."""

    series_targets_BK: Tensor
    """float32, NaN where unknown."""


def series_rows(table: pd.DataFrame) -> list[Integers]:
    """Find the series of a table.

    Args:
        table: a store's table, or its columns `ORDER`; in any order.

    Returns:
        For each series the numbers of its rows, from 0, in the order of its slices.
        Series are sorted by patient, study and series.
    """
    if table.empty:
        return []
    sorted_table = table[list(ORDER)].reset_index(drop=True).sort_values(list(ORDER))
    ids = sorted_table[["patient", "study", "series"]]
    first_S = np.flatnonzero((ids != ids.shift()).any(axis=1))
    return np.split(sorted_table.index.to_numpy(np.int64), first_S[1:])


def sample_evenly(num_slices: int, max_slices: int) -> Integers:
    """Choose slices at equal distances, the first and the last included.

    Args:
        num_slices: length of the series, at least 1.
        max_slices: upper limit of M, at least 2.

    Returns:
        Rising indices, shape (M,); all if there are not too many.

    Example:
        >>> sample_evenly(9, 4).tolist()
        [0, 2, 5, 8]
    """
    if num_slices <= max_slices:
        return np.arange(num_slices)
    return np.arange(max_slices) * (num_slices - 1) // (max_slices - 1)


def map_back(
    logits_MK: npt.NDArray[np.float64], sampled_M: Integers, num_slices: int
) -> npt.NDArray[np.float64]:
    """Interpolate logits of sampled slices to all slices of a series.

    Args:
        logits_MK: one row per sampled slice.
        sampled_M: what `sample_evenly` gave.
        num_slices: length of the series.

    Returns:
        Shape (num_slices, K); rows of sampled slices are unchanged.
    """
    order_Z = np.arange(num_slices)
    columns = [np.interp(order_Z, sampled_M, logits_M) for logits_M in logits_MK.T]
    return np.stack(columns, axis=1)


def epoch_batches(
    num_series: int, batch_size: int, *, seed: int, epoch: int
) -> list[Integers]:
    """Shuffle the series of an epoch and cut them into batches of nearly equal size.

    Args:
        num_series: S, at least 1.
        batch_size: upper limit of the size of a batch.
        seed: of the run.
        epoch: from 0.
    """
    order_S = np.random.default_rng((seed, epoch)).permutation(num_series)
    return np.array_split(order_S, -(-num_series // batch_size))


class SeriesBatches:
    """Makes batches of series.

    Args:
        arrays: all series.
        config: `max_slices` and `position`.
        device: where batches go.
    """

    def __init__(
        self, arrays: SeriesArrays, config: SeriesConfig, device: torch.device
    ) -> None:
        self.arrays = arrays
        self.sampled = [
            sample_evenly(len(rows), config.max_slices) for rows in arrays.rows
        ]
        """For each series, the indices of the slices that the head reads."""
        self._position = config.position
        self._device = device
        self._bag_labels_SK = arrays.bag_labels_SK
        self._targets_SK = arrays.targets_SK

    @property
    def num_sampled(self) -> int:
        """Number of slices that the head reads, of all series."""
        return sum(map(len, self.sampled))

    def batch(self, series_B: Integers) -> SeriesBatch:
        """Make the batch of some series, given by number."""
        arrays = self.arrays
        num_slices = max(len(self.sampled[s]) for s in series_B)
        shape = (len(series_B), num_slices)
        features_BZD = np.zeros((*shape, arrays.features_ND.shape[1]), np.float32)
        targets_BZK = np.full((*shape, arrays.labels_NK.shape[1]), np.nan, np.float32)
        position_BZ = np.zeros(shape, np.float32)
        is_slice_BZ = np.zeros(shape, np.bool_)
        for b, s in enumerate(series_B):
            sampled_M = self.sampled[s]
            rows_M, place = arrays.rows[s][sampled_M], (b, slice(len(sampled_M)))
            features_BZD[place] = arrays.features_ND[rows_M]
            targets_BZK[place] = arrays.labels_NK[rows_M]
            position_BZ[place] = self._positions(arrays.rows[s])[sampled_M]
            is_slice_BZ[place] = True
        return SeriesBatch(
            features_BZD=self._tensor(features_BZD),
            is_slice_BZ=self._tensor(is_slice_BZ),
            position_BZ=self._tensor(position_BZ),
            targets_BZK=self._tensor(targets_BZK),
            bag_targets_BK=self._tensor(self._bag_labels_SK[series_B]),
            series_targets_BK=self._tensor(self._targets_SK[series_B]),
        )

    def _positions(self, rows_Z: Integers) -> npt.NDArray[np.float64]:
        if self._position == "ordinal":
            return np.arange(len(rows_Z)) / max(len(rows_Z) - 1, 1)
        z_mm = self.arrays.position_mm_N[rows_Z]
        if np.isnan(z_mm).all():
            return np.zeros(len(rows_Z))
        middle_mm = (np.nanmin(z_mm) + np.nanmax(z_mm)) / 2
        # Slices without a position are placed in the middle.
        return np.nan_to_num((z_mm - middle_mm) / Z_UNIT_MM)

    def _tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self._device)
