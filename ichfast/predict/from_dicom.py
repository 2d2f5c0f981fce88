"""Predicting DICOM files without a store to keep.

1. The files become a temporary store, through the same reader as `ichfast prepare`,
   and the store's slices become predictions, through the same graph. So the
   probabilities are those of the two steps.
2. The store lies in the folder for temporary files (TMPDIR), readable by its owner
   only, and is removed at the end: also after an error, Ctrl-C or SIGTERM.
3. Slice, series and study ids stay as they are in the files. Without them nobody could
   tell which file a probability belongs to, for no key of theirs would be left.
   Patient ids become keyed hashes unless asked for: they are what hospitals know
   people by, and to group slices a hash does.
4. What cannot be read is counted and does not stop the rest.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from ichfast.errors import InterruptionError, PredictionError, StoreError
from ichfast.predict.ensemble import PredictConfig, predict_store
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.pseudonyms import KEY_BYTES, stored_id
from ichfast.runs.trained import open_ensemble
from ichfast.store.store import Store
from ichfast.system.signals import sigterm_interrupts


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomPredictions:
    """What a source of DICOM files came to."""

    table: pd.DataFrame
    """Columns as in `ichfast.evaluation.predictions`."""
    rejected: Mapping[str, int]
    """Files that are no CT slice, for each code."""


def predict_dicom(
    paths: Sequence[Path],
    sources: Sequence[Path | str],
    *,
    device: torch.device,
    config: PredictConfig,
    workers: int,
    keep_ids: bool = False,
) -> DicomPredictions:
    """Predict every CT slice in some sources with one or more runs.

    Args:
        paths: the runs' folders.
        sources: folders, files, archives and URLs, as `ichfast.sources` takes them.
        device: where to compute.
        config: how; with a limit, so many files are read.
        workers: decoding processes.
        keep_ids: keep patient ids as they are.

    Raises:
        IchfastError: what `predict.ensemble.predict_runs` and
        `prepare.prepare.prepare_store` refuse.
        InterruptionError: Ctrl-C or SIGTERM.
    """
    runs = open_ensemble(paths)
    with (
        sigterm_interrupts(),
        _told_what_to_do(),
        tempfile.TemporaryDirectory(prefix="ichfast-") as folder,
    ):
        report = prepare_store(
            sources,
            Path(folder) / "store",
            labels=None,
            workers=workers,
            keep_ids=True,
            max_rejected="100%",
            limit=config.limit,
        )
        with Store(report.store) as store:
            table = predict_store(runs, store, device=device, config=config)
    if not keep_ids:
        key = secrets.token_bytes(KEY_BYTES)
        table["patient"] = [stored_id(key, patient) for patient in table["patient"]]
    return DicomPredictions(table=table, rejected=report.rejected)


@contextmanager
def _told_what_to_do() -> Iterator[None]:
    """Say what holds for a temporary store, which no command can continue."""
    try:
        yield
    except (KeyboardInterrupt, StoreError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, KeyboardInterrupt):
            raise InterruptionError(
                "stopped; nothing was written and the temporary store is removed; "
                "the same command starts again"
            ) from error
        if isinstance(cause, OSError):
            raise PredictionError(
                f"{tempfile.gettempdir()} cannot hold the slices ({cause.strerror}), "
                "0.7 MB each; make room, or set TMPDIR to another folder"
            ) from error
        raise
