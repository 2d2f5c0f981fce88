"""A series run: the folder that `train-series` leaves, and the run opened for use.

    SERIES_RUN/
      series.json         settings, backbones, store, counts, environment, blend
      metrics.csv         one row per epoch
      last.pt             the newest checkpoint, to resume
      last.previous.pt    the checkpoint before it, in case that is damaged
      best.pt             the weights of the best epoch; only of a finished run
      backbones/0/        of each backbone what `runs.trained.open_run` needs, so the
                          folder is complete by itself
      .lock               held while a process trains here; stays

Shape letters: M slices of whole series, S series, D features, K classes.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from ichfast.errors import CheckpointError, PredictionError, RecipeError, first_line
from ichfast.loading.splits import ID_FILES
from ichfast.runs.patients import TrainingPatients, patients_from_text
from ichfast.runs.record import RECORD as RUN_RECORD
from ichfast.runs.trained import TrainedRun, checkpoint_digest, find_store, open_run
from ichfast.series.batches import SeriesArrays, series_rows
from ichfast.series.blend import blend
from ichfast.series.features import FeaturesRun
from ichfast.series.fit import predict_series
from ichfast.series.head import SeriesHead
from ichfast.series.record import BACKBONES, SeriesRecord, read_series_record
from ichfast.series.record import is_series_run as is_series_run
from ichfast.store.store import Store
from ichfast.system.files import atomic_path
from ichfast.training.checkpoint import BEST, PATIENTS, SETTINGS, load_checkpoint

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesRun:
    """A finished series run."""

    path: Path
    record: SeriesRecord
    backbones: tuple[TrainedRun, ...]
    """In the order of `record.features`."""

    head_patients: TrainingPatients
    """The patients that the head was trained on; those of the backbones are theirs."""

    weights: dict[str, Tensor]
    """State of the head in the best epoch, on the CPU."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.resolve().name

    def trained_on(self, store: Store) -> bool:
        """Whether the run was trained on this store, even if it was moved."""
        return store.header.digest == self.record.store_digest

    def trained_before(self, store: Store) -> bool:
        """Whether this store grew, by appends, from that of the run."""
        return self.record.store_digest in store.header.lineage

    def find_store(self) -> Path:
        """Find the store that the run was trained on, also after a move or an append.

        Raises:
            StoreError: it is not there, cannot be read, or holds something else.
        """
        return find_store(self.path, self.record.store, self.record.store_digest)

    def load_head(self, device: torch.device) -> SeriesHead:
        """Build the head with the weights of its best epoch, in evaluation mode.

        Raises:
            CheckpointError: the checkpoint does not fit the settings.
        """
        # Without memory until the weights turn out to fit.
        with torch.device("meta"):
            head = SeriesHead(self.record.num_features, self.record.series)
        try:
            if any(each.dtype != torch.float32 for each in self.weights.values()):
                raise TypeError("its weights are not all float32")
            head.load_state_dict(self.weights, assign=True)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.path / BEST} does not fit the run's settings: "
                f"{first_line(error)}; train again"
            ) from error
        return head.to(device).eval()


def open_series_run(path: Path) -> SeriesRun:
    """Open the folder of a finished series run.

    Raises:
        CheckpointError: there is no series run, it is not finished, or a checkpoint
            is damaged or was replaced.
        RecipeError: a record is damaged, or was edited since.
    """
    if not (path / BEST).is_file() or not read_series_record(path).blend:
        read_series_record(path)  # an error if there is no run
        raise CheckpointError(
            f"{path} is not finished; continue it with `ichfast train-series --resume`"
        )
    content = load_checkpoint(path / BEST)
    try:
        patients = patients_from_text(content[PATIENTS])
    except RecipeError as error:
        raise CheckpointError(f"{path / BEST} is damaged: {error}") from error
    record = read_series_record(path, settings=content[SETTINGS])
    return SeriesRun(
        path=path,
        record=record,
        backbones=open_backbones(path, record.features),
        head_patients=patients,
        weights=content["model"],
    )


def open_backbones(path: Path, runs: tuple[FeaturesRun, ...]) -> tuple[TrainedRun, ...]:
    """Open the copies of the backbones in a series run's folder.

    Args:
        path: the series run's folder.
        runs: as the record has them.

    Raises:
        CheckpointError: a copy is missing, damaged, or of another checkpoint.
        RecipeError: its record is damaged, or was edited since.
    """
    backbones = tuple(open_run(path / BACKBONES / str(n)) for n in range(len(runs)))
    for backbone, run in zip(backbones, runs, strict=True):
        if backbone.digest != run.digest:
            raise CheckpointError(
                f"{backbone.path / BEST} is not the checkpoint of {run.name} that the "
                "head was trained with; copy it back, or train again"
            )
    return backbones


def copy_backbones(
    path: Path, features_dir: Path, runs: tuple[FeaturesRun, ...]
) -> None:
    """Copy what is needed of the backbones into a series run's folder.

    A copy that is there stays as it is.

    Args:
        path: the series run's folder; exists, and is locked.
        features_dir: the features folder, near which runs are looked for that have
            moved.
        runs: the backbones.

    Raises:
        CheckpointError: a run is not there.
        PredictionError: a run was trained on since it computed the features.
        OSError: the copies cannot be written.
    """
    for number, run in enumerate(runs):
        target = path / BACKBONES / str(number)
        # The last file to be copied.
        if (target / BEST).is_file():
            continue
        source = _find_backbone(features_dir, run)
        target.mkdir(parents=True, exist_ok=True)
        for name in (*ID_FILES.values(), RUN_RECORD, BEST):
            if (source / name).is_file():
                _copy(source / name, target / name)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        # A checkpoint is replaced, never changed, so both can share its bytes.
        with suppress(OSError):
            temporary.hardlink_to(source)
            return
        shutil.copyfile(source, temporary)


def _find_backbone(features_dir: Path, run: FeaturesRun) -> Path:
    """The folder of a run that computed features, also after it was moved."""
    named = Path(run.path)
    folders = (*features_dir.absolute().parents[:2], Path.cwd())
    found = [
        path
        for path in (named, *(folder / named.name for folder in folders))
        if (path / BEST).is_file()
    ]
    for path in found:
        if checkpoint_digest(path) == run.digest:
            return path
    if found:
        raise PredictionError(
            f"{features_dir} was computed with another checkpoint than {found[0]} has "
            "now; make the features again with `ichfast features`"
        )
    raise CheckpointError(
        f"{features_dir} was computed with the run {named}, which is not there; move "
        "it back, or make the features again with another run"
    )


class SeriesPrediction(NamedTuple):
    """Logits of whole series."""

    slices_MK: Floats
    """Logits of the slices, in the order of their rows."""

    series_SK: Floats
    """Logits of the series."""

    series_M: npt.NDArray[np.int64]
    """For each slice the number of its series."""


def read_series(
    head: SeriesHead,
    features_MD: npt.NDArray[np.floating],
    logits_MK: npt.NDArray[np.floating],
    rows_M: pd.DataFrame,
    shares_K: tuple[float, ...],
) -> SeriesPrediction:
    """Predict whole series from features, and blend with the slice model.

    The slice model's logit of a series is the highest of its slices.

    Args:
        head: left in evaluation mode.
        features_MD: pooled features of one backbone.
        logits_MK: logits of the same backbone.
        rows_M: the slices' rows of a store's table, all of each series, in any order.
        shares_K: share of the head of each class, in [0, 1].
    """
    rows = series_rows(rows_M)
    num_classes = logits_MK.shape[1]
    arrays = SeriesArrays(
        features_ND=features_MD,
        labels_NK=np.full(logits_MK.shape, np.nan, np.float32),
        position_mm_N=rows_M["position_mm"].to_numpy(np.float64, na_value=np.nan),
        rows=rows,
        series_labels_SK=np.full((len(rows), num_classes), np.nan, np.float32),
    )
    slices_MK, series_SK = predict_series(head, arrays)
    slice_model_MK = logits_MK.astype(np.float64)
    highest_SK = arrays.judged(slice_model_MK)[len(slices_MK) :]
    series_M = np.empty(len(rows_M), dtype=np.int64)
    for number, rows_Z in enumerate(rows):
        series_M[rows_Z] = number
    alpha_K = np.array(shares_K)
    return SeriesPrediction(
        slices_MK=blend(slice_model_MK, slices_MK, alpha_K),
        series_SK=blend(highest_SK, series_SK, alpha_K),
        series_M=series_M,
    )
