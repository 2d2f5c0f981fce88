"""Prediction of a store with one or more trained runs.

1. A slice gets the average over the runs that predict it (`ichfast.predict.coverage`).
   So the runs of all folds predict their store out of fold, and any other store as an
   ensemble. They may differ in size, windows and arch.
2. The passes of test-time augmentation are averaged first, then each run's calibration
   is applied, then the runs are averaged; smoothing over z comes last.
3. For each slice the table names the runs that predicted it, and tells whether one of
   them, or a run from whose weights it started, was trained on its patient.
4. Where a slice is predicted by several runs, the table shows how much they differ.
5. The logits of networks are kept in a journal (`ichfast.predict.journal`) until the
   table is written. A network that several runs share computes them once.

Shape letters: N slices of the store, M slices that a run predicts, P predicted slices,
K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import Floats, logit, sigmoid
from ichfast.evaluation.predictions import (
    ALL_COLUMNS,
    ENTROPY_COLUMNS,
    LABEL_COLUMNS,
    STD_COLUMNS,
)
from ichfast.labels import CLASSES
from ichfast.predict.coverage import Coverage, common_store, cover
from ichfast.predict.journal import Journal, journal_folder
from ichfast.predict.networks import ComputeConfig, NetworkTask, compute
from ichfast.runs.trained import TrainedRun, open_ensemble
from ichfast.series.smoothing import smooth_over_z
from ichfast.store.store import Store
from ichfast.store.tables import BAG_LABELS
from ichfast.system.locks import temporary_folder
from ichfast.system.ranks import Ranks
from ichfast.training.inference import mix_passes

PREFIX = "ichfast-predict-"
"""Beginning of the names of journals in TMPDIR, of tables that no command writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """How slices are predicted."""

    tta: str = "none"
    """Test-time augmentation: a name that `training.inference.tta_passes` takes."""

    average: str = "probs"
    """What is averaged over several runs: ``probs`` or ``logits``."""

    smooth: bool = False
    """Average each slice with its neighbours in its series."""

    calibrate: bool = True
    """Apply the calibration of each run that has one."""

    batch_size: int | None = None
    """Slices at a time; None: as many as fit on a GPU, or the recipe's on a CPU."""

    cache: str = "none"
    """Where slices are kept between the passes of a run: a name of
    `loading.config.CACHES`."""

    only: Path | None = None
    """A file with the ids of the slices, series, studies or patients to predict
    (`ichfast.loading.id_files`); None: all."""

    limit: int | None = None
    """Upper limit of slices for each run, spread evenly over them; None: no limit."""

    def __post_init__(self) -> None:
        if self.average not in ("probs", "logits"):
            raise PredictionError(
                f"runs are averaged as probs or as logits, got {self.average!r}"
            )

    @property
    def compute(self) -> ComputeConfig:
        """What networks need of it."""
        return ComputeConfig(tta=self.tta, batch_size=self.batch_size, cache=self.cache)


DEFAULT = PredictConfig()


def predict_runs(
    paths: Sequence[Path],
    *,
    device: torch.device,
    store_path: Path | None = None,
    config: PredictConfig = DEFAULT,
) -> pd.DataFrame:
    """Predict with the best epoch of one or more runs.

    Args:
        paths: the runs' folders.
        device: where to compute.
        store_path: the store to predict; None: the one that the runs trained on.
        config: test-time augmentation, averaging, smoothing, batch size and so on.

    Returns:
        A table with the columns of `ichfast.evaluation.predictions`, in store order.

    Raises:
        IchfastError: no run, no valid checkpoint, no store, or runs that cannot be
            averaged.

    Example:
        >>> from pathlib import Path
        >>> import ichfast, torch
        >>> cpu = torch.device("cpu")
        >>> table = ichfast.predict_runs([Path("runs/first")], device=cpu)
        >>> bool(table["any"].dropna().between(0, 1).all())
        True
    """
    runs = open_ensemble(paths)
    with Store(store_path or common_store(runs)) as store:
        return predict_store(runs, store, device=device, config=config)


def predict_store(
    runs: Sequence[TrainedRun],
    store: Store,
    *,
    device: torch.device,
    config: PredictConfig,
) -> pd.DataFrame:
    """Predict an open store with one or more opened runs.

    Args:
        runs: as `open_ensemble` returns them.
        store: the store to predict.
        device: where to compute.
        config: test-time augmentation, averaging, smoothing, batch size and so on.

    Returns:
        A table with the columns of `ichfast.evaluation.predictions`, in store order.

    Raises:
        IchfastError: no valid checkpoint, or settings that do not fit the store.
    """
    ensemble = _Ensemble(runs, store, config)
    with (
        temporary_folder(PREFIX) as folder,
        ensemble.computed(folder / "journal", device, Ranks()) as journal,
    ):
        return ensemble.table(journal)


@contextmanager
def kept_predictions(
    paths: Sequence[Path],
    out: Path,
    *,
    device: torch.device,
    ranks: Ranks,
    store_path: Path | None = None,
    config: PredictConfig = DEFAULT,
) -> Iterator[pd.DataFrame | None]:
    """Predict like `predict_runs`, with several ranks, going on after a kill.

    What is computed is kept in a journal next to `out` until the block ends, in which
    the table is to be written. The same call goes on with it.

    Args:
        paths: the runs' folders.
        out: where the table will be; in a folder that all ranks see.
        device: where to compute.
        ranks: the processes that share the work; each calls this.
        store_path: the store to predict; None: the one that the runs trained on.
        config: test-time augmentation, averaging, smoothing, batch size and so on.

    Yields:
        The table, the same to the last bit for any number of ranks; None on ranks that
        do not write.

    Raises:
        IchfastError: what `predict_runs` raises, or a journal that does not fit.
    """
    runs = open_ensemble(paths)
    with Store(store_path or common_store(runs)) as store:
        ensemble = _Ensemble(runs, store, config)
        with ensemble.computed(journal_folder(out), device, ranks) as journal:
            yield ensemble.table(journal) if ranks.writes else None


class _Ensemble:
    """Runs that predict a store.

    Args:
        runs: one or more.
        store: the store.
        config: how it is predicted.
    """

    def __init__(
        self, runs: Sequence[TrainedRun], store: Store, config: PredictConfig
    ) -> None:
        self._store = store
        self._config = config
        self._coverages = [
            cover(run, store, only=config.only, limit=config.limit) for run in runs
        ]
        digests = [each.run.digest for each in self._coverages]
        self._task_numbers = [sorted(set(digests)).index(digest) for digest in digests]
        """For each coverage, the task of its network."""

        self._tasks = [
            NetworkTask.join(
                [
                    NetworkTask(
                        run=each.run, positions_M=each.positions_M, with_features=False
                    )
                    for each, found in zip(self._coverages, digests, strict=True)
                    if found == digest
                ]
            )
            for digest in sorted(set(digests))
        ]

    def computed(
        self, folder: Path, device: torch.device, ranks: Ranks
    ) -> AbstractContextManager[Journal]:
        """Compute the rows of all networks; see `networks.compute`."""
        return compute(
            self._tasks,
            self._store,
            folder,
            config=self._config.compute,
            device=device,
            ranks=ranks,
        )

    def table(self, journal: Journal) -> pd.DataFrame:
        """Make the table of predictions from the rows of all networks."""
        probs = [
            self._probs_MK(each, number, journal)
            for each, number in zip(self._coverages, self._task_numbers, strict=True)
        ]
        predictions = [
            (each.positions_M, probs_MK)
            for each, probs_MK in zip(self._coverages, probs, strict=True)
        ]
        positions_P, probs_PK = average(predictions, how=self._config.average)
        if self._config.smooth:
            series_P = self._store.table["series"].to_numpy(dtype=object)[positions_P]
            probs_PK = smooth_over_z(probs_PK, series_P, positions_P)
        rows = self._store.table.iloc[positions_P]
        keys = ["slice_id", "series", "study", "patient", "position_mm"]
        table = rows[keys].reset_index(drop=True)
        num_slices = len(self._store)
        table["fold"] = _fold_N(self._coverages, num_slices)[positions_P]
        table["run"] = _names_N(self._coverages, num_slices)[positions_P]
        table["trained_on"] = _trained_on_N(self._coverages, num_slices)[positions_P]
        table[list(CLASSES)] = probs_PK
        labels = rows.reset_index(drop=True)
        table[list(LABEL_COLUMNS)] = labels[list(CLASSES)]
        for names in map(list, BAG_LABELS.values()):
            if self._store.table[names].notna().any(axis=None):
                table[names] = labels[names]
        std_PK = deviation(predictions)
        if not np.isnan(std_PK).all():
            table[list(STD_COLUMNS)] = std_PK
            table[list(ENTROPY_COLUMNS)] = binary_entropy(probs_PK)
        return table[[name for name in ALL_COLUMNS if name in table]]

    def _probs_MK(self, coverage: Coverage, number: int, journal: Journal) -> Floats:
        """The probabilities of one run, averaged over its passes and calibrated."""
        rows_M = np.searchsorted(self._tasks[number].positions_M, coverage.positions_M)
        passes = self._config.compute.passes(coverage.run)
        probs = []
        for pass_number in range(len(passes)):
            logits_MK = journal.read(number, pass_number)["logits"][rows_M]
            probs.append(torch.from_numpy(logits_MK).double().sigmoid().numpy())
        probs_MK = mix_passes(passes, probs)
        calibration = coverage.run.record.calibration
        if self._config.calibrate and calibration is not None:
            probs_MK = calibration.apply(probs_MK)
        return probs_MK


def average(
    predictions: Sequence[tuple[npt.NDArray[np.int64], Floats]], *, how: str
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Average the predictions of several runs.

    Args:
        predictions: for each run the store positions it predicted, shape (M,), and
            its probabilities, shape (M, K).
        how: ``probs``; or ``logits``, which gives certain predictions more weight.

    Returns:
        The rising store positions that any run predicted, shape (N,), and the mean
        over the runs that predicted each, shape (N, K).
    """
    predicted_N = np.unique(np.concatenate([positions for positions, _ in predictions]))
    sum_NK = np.zeros((len(predicted_N), predictions[0][1].shape[1]))
    count_N1 = np.zeros((len(predicted_N), 1))
    for positions_M, probs_MK in predictions:
        rows_M = np.searchsorted(predicted_N, positions_M)
        sum_NK[rows_M] += probs_MK if how == "probs" else logit(probs_MK)
        count_N1[rows_M] += 1
    mean_NK = sum_NK / count_N1
    return predicted_N, mean_NK if how == "probs" else sigmoid(mean_NK)


def deviation(predictions: Sequence[tuple[npt.NDArray[np.int64], Floats]]) -> Floats:
    """Standard deviation of the probabilities that several runs give a slice.

    Args:
        predictions: as for `average`.

    Returns:
        Shape (P, K), in the order of `average`; NaN for a slice of a single run. That
        of two runs is half their difference.
    """
    predicted_P, mean_PK = average(predictions, how="probs")
    sum_PK, count_P1 = np.zeros_like(mean_PK), np.zeros((len(mean_PK), 1))
    for positions_M, probs_MK in predictions:
        rows_M = np.searchsorted(predicted_P, positions_M)
        sum_PK[rows_M] += (probs_MK - mean_PK[rows_M]) ** 2
        count_P1[rows_M] += 1
    std_PK: Floats = np.where(count_P1 > 1, np.sqrt(sum_PK / count_P1), np.nan)
    return std_PK


def binary_entropy(probs: Floats) -> Floats:
    """Entropy of probabilities in [0, 1], any shape, in bits: 0 to 1."""
    both = np.stack([probs, 1.0 - probs])
    # A probability of 0 adds 0, the limit.
    entropy: Floats = -(both * np.log2(np.where(both > 0, both, 1.0))).sum(axis=0)
    return entropy


def _fold_N(coverages: Sequence[Coverage], num_slices: int) -> npt.NDArray[np.int8]:
    fold_N = np.full(num_slices, -1, dtype=np.int8)
    for each in coverages:
        fold_N[each.positions_M] = each.fold_M
    return fold_N


def _names_N(coverages: Sequence[Coverage], num_slices: int) -> npt.NDArray[np.object_]:
    """Names of the runs of each slice, joined by +; few different texts."""
    names, number_N = [""], np.zeros(num_slices, dtype=np.intp)
    for each in coverages:
        before, number_M = np.unique(number_N[each.positions_M], return_inverse=True)
        number_N[each.positions_M] = len(names) + number_M
        names += [
            f"{names[k]}+{each.run.name}" if names[k] else each.run.name for k in before
        ]
    return np.array(names, dtype=object)[number_N]


def _trained_on_N(
    coverages: Sequence[Coverage], num_slices: int
) -> pd.arrays.BooleanArray:
    """True if any run trained on the patient, missing if that is not known."""
    is_true_N, is_unknown_N = np.zeros((2, num_slices), dtype=bool)
    for each in coverages:
        is_true_N[each.positions_M] |= each.trained_on_M == 1
        is_unknown_N[each.positions_M] |= np.isnan(each.trained_on_M)
    return pd.arrays.BooleanArray(is_true_N, is_unknown_N & ~is_true_N)
