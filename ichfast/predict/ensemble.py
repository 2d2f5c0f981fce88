"""Prediction of a store with one or more trained runs.

1. A slice gets the average over the runs that predict it (`ichfast.predict.coverage`).
   So the runs of all folds predict their store out of fold, and any other store as an
   ensemble. They may differ in size, windows and arch.
2. The passes of test-time augmentation are averaged first, then each run's calibration
   is applied, then the runs are averaged; smoothing over z comes last.
3. For each slice the table names the runs that predicted it, and tells whether one of
   them, or a run from whose weights it started, was trained on its patient.
4. Where a slice is predicted by several runs, the table shows how much they differ.
5. A series run predicts slices and series; the table has the probabilities of series
   if a series run predicted every row.
6. The logits of networks are kept in a journal (`ichfast.predict.journal`) until the
   table is written. A network that several runs share computes them once.

Shape letters: N slices of the store, M slices that a run predicts, P predicted slices,
K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ichfast.errors import PredictionError
from ichfast.evaluation.predictions import (
    ALL_COLUMNS,
    ENTROPY_COLUMNS,
    LABEL_COLUMNS,
    SERIES_PROB_COLUMNS,
    STD_COLUMNS,
)
from ichfast.labels import CLASSES
from ichfast.predict.averages import average, binary_entropy, deviation
from ichfast.predict.coverage import (
    Coverage,
    Run,
    common_store,
    cover,
    open_runs,
    series_numbers,
)
from ichfast.predict.journal import Journal, journal_folder
from ichfast.predict.networks import ComputeConfig, NetworkTask, compute
from ichfast.predict.probabilities import (
    NetworkRows,
    RunProbs,
    series_probs,
    slice_probs,
)
from ichfast.series.folder import SeriesRun
from ichfast.series.smoothing import smooth_over_z
from ichfast.store.store import Store
from ichfast.store.tables import BAG_LABELS
from ichfast.system.locks import temporary_folder
from ichfast.system.ranks import Ranks

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

    all_slices: bool = False
    """Also predict slices of patients on whom a run was trained."""

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
    runs = open_runs(paths)
    with Store(store_path or common_store(runs)) as store:
        return predict_store(runs, store, device=device, config=config)


def predict_store(
    runs: Sequence[Run],
    store: Store,
    *,
    device: torch.device,
    config: PredictConfig,
    folder: Path | None = None,
) -> pd.DataFrame:
    """Predict an open store with one or more opened runs.

    Args:
        runs: as `coverage.open_runs` returns them.
        store: the store to predict.
        device: where to compute.
        config: test-time augmentation, averaging, smoothing, batch size and so on.
        folder: a temporary folder for what networks compute; None: one in TMPDIR.

    Returns:
        A table with the columns of `ichfast.evaluation.predictions`, in store order.

    Raises:
        IchfastError: no valid checkpoint, or settings that do not fit the store.
    """
    ensemble = _Ensemble(runs, store, device, config)
    with (
        temporary_folder(PREFIX) if folder is None else nullcontext(folder) as place,
        ensemble.computed(place / "journal", Ranks()) as journal,
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
    runs = open_runs(paths)
    with Store(store_path or common_store(runs)) as store:
        ensemble = _Ensemble(runs, store, device, config)
        with ensemble.computed(journal_folder(out), ranks) as journal:
            yield ensemble.table(journal) if ranks.writes else None


class _Ensemble:
    """Runs that predict a store.

    Args:
        runs: one or more.
        store: the store.
        device: where to compute.
        config: how it is predicted.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        store: Store,
        device: torch.device,
        config: PredictConfig,
    ) -> None:
        self._store = store
        self._device = device
        self._config = config
        self._coverages = [
            coverage
            for run in runs
            for coverage in cover(
                run,
                store,
                all_slices=config.all_slices,
                only=config.only,
                limit=config.limit,
            )
        ]
        tasks: dict[str, NetworkTask] = {}
        digests = []
        for each in self._coverages:
            for network in each.networks:
                digests.append(digest := network.digest)
                task = NetworkTask(
                    run=network,
                    positions_M=each.seen_R,
                    with_features=isinstance(each.run, SeriesRun),
                )
                tasks[digest] = tasks[digest] | task if digest in tasks else task
        self._tasks = list(tasks.values())
        numbers = iter([list(tasks).index(digest) for digest in digests])
        self._numbers = [
            [next(numbers) for _ in each.networks] for each in self._coverages
        ]
        """For each coverage, the tasks of its networks."""

    def computed(self, folder: Path, ranks: Ranks) -> AbstractContextManager[Journal]:
        """Compute the rows of all networks; see `networks.compute`."""
        return compute(
            self._tasks,
            self._store,
            folder,
            config=self._config.compute,
            device=self._device,
            ranks=ranks,
        )

    def table(self, journal: Journal) -> pd.DataFrame:
        """Make the table of predictions from the rows of all networks."""
        found = [
            self._run_probs(each, numbers, journal)
            for each, numbers in zip(self._coverages, self._numbers, strict=True)
        ]
        how = self._config.average
        slices = [
            (each.positions_M, probs.slices_MK)
            for each, probs in zip(self._coverages, found, strict=True)
        ]
        positions_P, probs_PK = average(slices, how=how)
        if self._config.smooth:
            series_P = self._store.table["series"].to_numpy(dtype=object)[positions_P]
            probs_PK = smooth_over_z(probs_PK, series_P, positions_P)
        table = self._rows(positions_P)
        table[list(CLASSES)] = probs_PK
        std_PK = deviation(slices)
        if not np.isnan(std_PK).all():
            table[list(STD_COLUMNS)] = std_PK
            table[list(ENTROPY_COLUMNS)] = binary_entropy(probs_PK)
        series = [each.series for each in found if each.series is not None]
        if series:
            series_S, series_probs_SK = average(series, how=how)
            series_P = series_numbers(self._store)[positions_P]
            if np.isin(series_P, series_S).all():
                rows_P = np.searchsorted(series_S, series_P)
                table[list(SERIES_PROB_COLUMNS)] = series_probs_SK[rows_P]
        return table[[name for name in ALL_COLUMNS if name in table]]

    def _rows(self, positions_P: npt.NDArray[np.int64]) -> pd.DataFrame:
        """The columns that are not probabilities."""
        rows = self._store.table.iloc[positions_P].reset_index(drop=True)
        keys = ["slice_id", "series", "study", "patient", "position_mm"]
        table = rows[keys].copy()
        num_slices = len(self._store)
        table["fold"] = _fold_N(self._coverages, num_slices)[positions_P]
        table["run"] = _names_N(self._coverages, num_slices)[positions_P]
        table["trained_on"] = _trained_on_N(self._coverages, num_slices)[positions_P]
        table[list(LABEL_COLUMNS)] = rows[list(CLASSES)]
        for names in map(list, BAG_LABELS.values()):
            if self._store.table[names].notna().any(axis=None):
                table[names] = rows[names]
        return table

    def _run_probs(
        self, coverage: Coverage, numbers: Sequence[int], journal: Journal
    ) -> RunProbs:
        """The probabilities of one run, calibrated."""
        rows = [
            NetworkRows(journal, number, self._tasks[number].positions_M)
            for number in numbers
        ]
        passes = self._config.compute.passes(coverage.networks[0])
        run = coverage.run
        found = (
            series_probs(coverage, run, rows, passes, self._store, self._device)
            if isinstance(run, SeriesRun)
            else slice_probs(coverage, rows[0], passes)
        )
        calibration = run.record.calibration
        if self._config.calibrate and calibration is not None:
            found = replace(found, slices_MK=calibration.apply(found.slices_MK))
        return found


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
