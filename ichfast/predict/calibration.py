"""Calibration of a run or a series run on patients that it was not trained on.

1. The slices are those that `ichfast.predict.coverage` finds: on the run's own store
   its validation fold, on another store all. Their labels are the store's, or those of
   a file in place of all of these.
2. Patients that any part of the run was trained on are refused, a backbone of a series
   run included: on them the run is more certain than on others.
3. Nothing is trained. The calibration is written into the record of the run, in place
   of the one before, and the run is locked meanwhile.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from ichfast.errors import PredictionError
from ichfast.evaluation.calibration import Calibration, fit_calibration
from ichfast.evaluation.curves import Aim
from ichfast.evaluation.logits import Floats
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.evaluation.predictions import probs_NK as probs_of
from ichfast.labels import CLASSES, LabelTable
from ichfast.predict.coverage import Run, cover, open_runs
from ichfast.predict.ensemble import PredictConfig, predict_store
from ichfast.prepare.labelling import add_labels, warn_of_strangers
from ichfast.prepare.pseudonyms import default_key_path, read_or_make_key
from ichfast.runs.record import RECORD, write_record
from ichfast.series.folder import SeriesRun
from ichfast.series.record import RECORD as SERIES_RECORD
from ichfast.series.record import write_series_record
from ichfast.store.store import Store
from ichfast.store.tables import label_columns, patients_N, read_rows
from ichfast.system.files import remove_leftovers
from ichfast.system.locks import LockHeldError, locked_folder

PLAIN = PredictConfig(calibrate=False)

OTHER_PATIENTS = (
    "name a store of other patients with --store, or train with --set "
    "folds.kind=patient and other --weights"
)
"""What to do about patients that a run was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateReport:
    """A new calibration, and how far it is from the one before."""

    run: str
    store: str
    calibration: Calibration
    former: Calibration | None
    """The calibration before, which is replaced."""

    loss_former: float
    """Weighted log loss of these slices with the calibration before, in nats; without
    calibration if there was none."""

    moved: dict[str, float]
    """Mean distance between the probabilities of these slices before and now, by
    class."""


def calibrate_run(
    path: Path,
    *,
    device: torch.device,
    store_path: Path | None = None,
    labels: LabelTable | None = None,
    aim: Aim | None = None,
    allow_unknown: bool = False,
) -> CalibrateReport:
    """Fit the calibration of a run, and write it into the run's record.

    Args:
        path: the run's folder.
        device: where to predict.
        store_path: the store to predict; None: the one that the run was trained on.
        labels: labels of slices in place of the store's; None: the store's.
        aim: what the thresholds reach; None: a sensitivity of 0.95.
        allow_unknown: accept patients of whom it is not known whether the run was
            trained on them.

    Raises:
        PredictionError: patients that the run was trained on, or may have been; too
            few patients with a label; labels that are of no slice of the store; or a
            folder that another process uses, or that cannot be written.
        IchfastError: no run, no valid checkpoint or no store.
    """
    (run,) = open_runs([path])
    with Store(store_path or run.find_store()) as store, _locked(path):
        # First what can be refused: predicting may take hours.
        known = _labels(store, labels)
        _check_patients(run, store, allow_unknown=allow_unknown)
        table = predict_store([run], store, device=device, config=PLAIN)
        probs_NK = probs_of(table)
        labels_NK = known.loc[table["slice_id"]].to_numpy()
        calibration = fit_calibration(
            probs_NK,
            labels_NK,
            patients_N(table),
            store_digest=store.header.digest,
            aim=aim or Aim(),
        )
        _write(run, calibration)
    return _compare(run, store, calibration, probs_NK, labels_NK)


def remove_calibration(path: Path) -> Calibration | None:
    """Take the calibration out of a run's record.

    Returns:
        The calibration that it had, if there was one.

    Raises:
        PredictionError: a folder that another process uses, or that cannot be written.
        IchfastError: no run, or no valid checkpoint.
    """
    (run,) = open_runs([path])
    with _locked(path):
        _write(run, None)
    return run.record.calibration


def _compare(
    run: Run,
    store: Store,
    calibration: Calibration,
    probs_NK: Floats,
    labels_NK: Floats,
) -> CalibrateReport:
    """Compare a calibration with the one before.

    Args:
        run: with the calibration before.
        store: the store of the slices.
        calibration: the new one.
        probs_NK: probabilities without calibration.
        labels_NK: 0, 1 or NaN.
    """
    former = run.record.calibration
    former_NK = former.apply(probs_NK) if former else probs_NK
    moved_K = np.abs(calibration.apply(probs_NK) - former_NK).mean(axis=0)
    return CalibrateReport(
        run=str(run.path),
        store=str(store.path),
        calibration=calibration,
        former=former,
        loss_former=weighted_log_loss(former_NK, labels_NK),
        moved=dict(zip(CLASSES, moved_K.tolist(), strict=True)),
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a run's folder, which must be one that can be written."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(path))
        except LockHeldError as error:
            raise PredictionError(
                f"{error.holder} is using {path}; wait for it to end or stop it"
            ) from error
        except OSError as error:
            raise _cannot_write(path, error) from error
        for name in (RECORD, SERIES_RECORD):
            remove_leftovers(path / name)
        yield


def _write(run: Run, calibration: Calibration | None) -> None:
    try:
        if isinstance(run, SeriesRun):
            series_record = replace(run.record, calibration=calibration)
            write_series_record(run.path, series_record)
        else:
            write_record(run.path, replace(run.record, calibration=calibration))
    except OSError as error:
        raise _cannot_write(run.path, error) from error


def _cannot_write(path: Path, error: OSError) -> PredictionError:
    return PredictionError(
        f"cannot write the run's folder {path}: {error.strerror}; calibrate a copy of "
        "it elsewhere"
    )


def _check_patients(run: Run, store: Store, *, allow_unknown: bool) -> None:
    """Refuse patients that any part of a run was trained on, or may have been."""
    (coverage,) = cover(run, store, all_slices=False, only=None, limit=None)
    num_slices = len(coverage.positions_M)
    is_trained_M = coverage.trained_on_M == 1
    num_unknown = int(np.isnan(coverage.trained_on_M).sum())
    if is_trained_M.any():
        rows = store.table.iloc[coverage.positions_M[is_trained_M]]
        raise PredictionError(
            f"{len(rows):,} of {num_slices:,} slices are of "
            f"{len(set(patients_N(rows))):,} patients that {run.path} was trained on, "
            f"on whom it is more certain than on others; {OTHER_PATIENTS}"
        )
    if num_unknown and not allow_unknown:
        raise PredictionError(
            f"it is not known of {num_unknown:,} of {num_slices:,} slices whether "
            f"{run.path} was trained on their patients; if you know that it was not, "
            "add --allow-unknown"
        )


def _labels(store: Store, labels: LabelTable | None) -> pd.DataFrame:
    """The labels of all slices of a store, by slice id; 0, 1 or NaN.

    Args:
        store: the store.
        labels: labels in place of the store's, or None.
    """
    labels_NK = (
        store.labels_NK() if labels is None else _labels_of_file(store, labels)
    ).astype(np.float64)
    if np.isnan(labels_NK).all():
        raise PredictionError(
            f"{store.path} has no label of a slice, so there is nothing to calibrate "
            "on; add --labels FILE"
        )
    return pd.DataFrame(labels_NK, index=pd.Index(store.table["slice_id"]))


def _labels_of_file(store: Store, labels: LabelTable) -> npt.NDArray[np.floating]:
    """The labels that a file has for the slices of a store, shape (N, 6)."""
    if labels.level not in ("slice", "slice number"):
        raise PredictionError(
            f"--labels is by {labels.level}; a calibration needs labels of slices"
        )
    key = _key_of(store)
    rows = read_rows(store.path, store.header)
    for name in label_columns(rows):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.nulls(len(rows), pa.int8()))
    labelled = add_labels(rows, labels, key, relabel=False)
    if not labelled.num_found:
        warn_of_strangers(rows, labels, key)
        raise PredictionError(
            f"--labels has no label of a slice of {store.path}; give the file of this "
            "store, or name its store with --store"
        )
    columns = [labelled.rows[name].cast(pa.float32()).to_numpy() for name in CLASSES]
    return np.column_stack(columns)


def _key_of(store: Store) -> bytes | None:
    """The key of a store's hashed ids; None where ids are kept."""
    if store.header.keep_ids:
        return None
    path = default_key_path(store.path)
    if not path.exists():
        raise PredictionError(
            f"the ids of {store.path} are hashed, and --labels needs their key; copy "
            f"it to {path}"
        )
    return read_or_make_key(path, is_begun=True)
