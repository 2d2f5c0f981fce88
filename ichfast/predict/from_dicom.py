"""Prediction of DICOM files, without a store that stays.

1. The files are read like those of `ichfast prepare` into a temporary store, and that
   is predicted like any store. So the probabilities are those of the two commands.
2. The temporary store lies in TMPDIR, readable by its owner only. It is removed at the
   end, also after an error, Ctrl-C, SIGTERM or SIGHUP. That of a process that was
   killed is removed at the next start.
3. Slice, series and study ids stay as they are in the files, so that a probability can
   be traced to its file. Patient ids identify people in a hospital; they become keyed
   hashes unless asked for, which is enough to group slices.
4. Files that are no slices or cannot be read do not stop the others. They are counted,
   and listed in a csv, with numbers in place of names unless ids are kept.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from ichfast.errors import InterruptionError, PredictionError, StoreError
from ichfast.predict.coverage import Run, open_runs
from ichfast.predict.ensemble import PredictConfig, predict_store
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.pseudonyms import KEY_BYTES, stored_id
from ichfast.prepare.rejected import write_rejected_beside
from ichfast.store.store import Store
from ichfast.store.tables import read_rejected
from ichfast.system.locks import temporary_folder
from ichfast.system.signals import signals_interrupt

PREFIX = "ichfast-dicom-"
"""Beginning of the names of temporary stores."""

UseStore = Callable[[Sequence[Run], Store, pd.DataFrame], Mapping[str, object]]
"""Uses the runs, the temporary store, whose ids are all as in the files, and the
predictions, before the store is removed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomPredictions:
    """The predictions for some DICOM files."""

    table: pd.DataFrame
    """Columns as in `ichfast.evaluation.predictions`."""
    rejected: Mapping[str, int]
    """Number of files that were left out, by reject code."""
    is_listed: bool
    """Whether the csv of the files that were left out is written."""
    used: Mapping[str, object]
    """What `use_store` returned; empty without it."""


def predict_dicom(  # noqa: PLR0913  the options of the command
    paths: Sequence[Path],
    sources: Sequence[Path | str],
    *,
    device: torch.device,
    config: PredictConfig,
    workers: int,
    rejected_file: Path,
    keep_ids: bool = False,
    accept: Collection[str] = (),
    use_store: UseStore | None = None,
) -> DicomPredictions:
    """Predict every CT slice in some sources with one or more runs.

    Args:
        paths: the runs' folders.
        sources: folders, files, archives and URLs that `ichfast.sources` reads.
        device: where to compute.
        config: how to predict; its limit is the number of files to read.
        workers: decoding processes.
        rejected_file: csv of the files that are left out, also if all of them are. One
            of an earlier run is replaced, or removed if none is left out.
        keep_ids: keep patient ids as they are in the files, and names of files.
        accept: reject codes of images to predict all the same, as for `prepare_store`.
        use_store: what else is done with the temporary store; None: nothing.

    Raises:
        IchfastError: anything that `predict.ensemble.predict_runs` or
            `prepare.prepare.prepare_store` refuses.
        InterruptionError: Ctrl-C, SIGTERM or SIGHUP.
    """
    runs = open_runs(paths)
    with (
        signals_interrupt(),
        _explain_failures(),
        temporary_folder(PREFIX) as folder,
    ):
        report = prepare_store(
            sources,
            folder / "store",
            labels=None,
            workers=workers,
            keep_ids=True,
            max_rejected="100%",
            limit=config.limit,
            accept=accept,
            name_files=keep_ids,
            rejected_file=rejected_file,
        )
        with Store(report.store) as store:
            table = predict_store(
                runs, store, device=device, config=config, folder=folder
            )
            rejected = read_rejected(store.path, store.header)
            is_listed = write_rejected_beside(rejected_file, rejected, PredictionError)
            if not keep_ids:
                key = secrets.token_bytes(KEY_BYTES)
                table["patient"] = [stored_id(key, each) for each in table["patient"]]
            used = use_store(runs, store, table) if use_store else {}
    return DicomPredictions(
        table=table, rejected=report.rejected, is_listed=is_listed, used=used
    )


@contextmanager
def _explain_failures() -> Iterator[None]:
    """Reword the errors of a store for a temporary one, which cannot be continued."""
    try:
        yield
    except (KeyboardInterrupt, StoreError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, KeyboardInterrupt):
            raise InterruptionError(
                "stopped; the temporary store is removed; the same command starts again"
            ) from error
        if isinstance(cause, OSError):
            raise PredictionError(
                f"{tempfile.gettempdir()} cannot hold the slices ({cause.strerror}), "
                "0.7 MB each; make room, or set TMPDIR to another folder"
            ) from error
        raise
