"""Rows of networks to the probabilities of one run.

Each pass of test-time augmentation gives probabilities; those of the passes are
averaged by weight. A series run reads each pass with its head, once with each of its
networks, whose logits are averaged.

Shape letters: R slices that a network sees, M slices that a run predicts, S series,
D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ichfast.evaluation.logits import Floats, sigmoid
from ichfast.labels import CLASSES
from ichfast.predict.coverage import Coverage, Positions, series_numbers
from ichfast.predict.journal import Journal, Rows
from ichfast.series.folder import SeriesRun, read_series
from ichfast.series.head import SeriesHead
from ichfast.store.store import Store
from ichfast.training.inference import Pass, mix_passes

CHUNK_SLICES = 16_384
"""Slices whose features are in memory at a time, rounded up to whole series."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProbs:
    """The probabilities of one run."""

    slices_MK: Floats
    """Probabilities of the slices that it predicts."""

    series: tuple[Positions, Floats] | None = None
    """Numbers of series in the store, rising, shape (S,), and their probabilities,
    (S, K); None without a head."""


@dataclass(frozen=True, slots=True)
class NetworkRows:
    """The rows that one network has computed."""

    journal: Journal
    task_number: int
    positions_R: Positions
    """Store positions of the rows, rising."""

    def read(self, pass_number: int, positions_M: Positions) -> Rows:
        """Read the rows of some slices.

        Args:
            pass_number: from 0.
            positions_M: store positions, rising; all of them have rows.
        """
        rows_M = np.searchsorted(self.positions_R, positions_M)
        first, end = int(rows_M[0]), int(rows_M[-1]) + 1
        read = self.journal.read(self.task_number, pass_number, first, end)
        return read if len(read) == len(rows_M) else read[rows_M - first]


def slice_probs(
    coverage: Coverage, rows: NetworkRows, passes: Sequence[Pass]
) -> RunProbs:
    """Compute the probabilities of a run.

    Args:
        coverage: of the run.
        rows: of its network.
        passes: of test-time augmentation.
    """
    probs = []
    for pass_number in range(len(passes)):
        logits_MK = rows.read(pass_number, coverage.positions_M)["logits"]
        logits = torch.from_numpy(np.ascontiguousarray(logits_MK))
        probs.append(logits.double().sigmoid().numpy())
    return RunProbs(slices_MK=mix_passes(passes, probs))


def series_probs(
    coverage: Coverage,
    run: SeriesRun,
    rows: Sequence[NetworkRows],
    passes: Sequence[Pass],
    store: Store,
    device: torch.device,
) -> RunProbs:
    """Compute the probabilities of a series run.

    Args:
        coverage: of the run.
        run: the run.
        rows: of each of its networks.
        passes: of test-time augmentation.
        store: the store that is predicted.
        device: where to compute.
    """
    head = run.load_head(device)
    series_R = series_numbers(store)[coverage.seen_R]
    series_S, first_S = np.unique(series_R, return_index=True)
    slices_RK = np.zeros((len(series_R), len(CLASSES)))
    series_SK = np.zeros((len(series_S), len(CLASSES)))
    for chunk, series in _chunks(first_S, len(series_R)):
        positions_R = coverage.seen_R[chunk]
        for number, each in enumerate(passes):
            read = [network.read(number, positions_R) for network in rows]
            slices_CK, found_SK = _read_chunk(
                run, head, read, store.table.iloc[positions_R]
            )
            slices_RK[chunk] += each.weight * slices_CK
            series_SK[series] += each.weight * found_SK
    rows_M = np.searchsorted(coverage.seen_R, coverage.positions_M)
    return RunProbs(slices_MK=slices_RK[rows_M], series=(series_S, series_SK))


def _chunks(
    first_S: npt.NDArray[np.intp], num_slices: int
) -> Iterator[tuple[slice, slice]]:
    """Cut slices into chunks of whole series: rows of slices and of series."""
    begin_S = np.append(first_S, num_slices)
    series = 0
    while series < len(first_S):
        limit = begin_S[series] + CHUNK_SLICES
        end = max(series + 1, int(np.searchsorted(begin_S, limit, side="right")) - 1)
        yield slice(begin_S[series], begin_S[end]), slice(series, end)
        series = end


def _read_chunk(
    run: SeriesRun,
    head: SeriesHead,
    rows: Sequence[Rows],
    table: pd.DataFrame,
) -> tuple[Floats, Floats]:
    """Probabilities of the slices and of the series of a chunk, in store order."""
    slices, series = [], []
    for rows_R in rows:
        found = read_series(
            head, rows_R["features"], rows_R["logits"], table, run.record.blend
        )
        slices.append(found.slices_MK)
        # In the order of the store, not that of the head.
        _, first_S = np.unique(found.series_M, return_index=True)
        series.append(found.series_SK[found.series_M[np.sort(first_S)]])
    return sigmoid(np.mean(slices, axis=0)), sigmoid(np.mean(series, axis=0))
