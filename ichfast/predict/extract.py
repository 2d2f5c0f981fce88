"""Features of a store: what the last layer of a backbone sees, for every slice.

1. One run computes the features of every slice of a store, also of those that it was
   trained on.
2. Runs that were trained on different folds of a store each compute those of the
   series in their validation fold. Slices in no fold of these runs have no features.
3. It goes on after a kill, and takes several ranks (`ichfast.predict.journal`). The
   files are the same, to the bit.

Shape letters: N slices of the store, M slices that a run computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ichfast.errors import PredictionError
from ichfast.predict.coverage import Positions, common_store, whole_series
from ichfast.predict.journal import Journal, journal_folder, remove_journal
from ichfast.predict.networks import ComputeConfig, NetworkTask, compute
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.series.features import (
    ARRAYS,
    HEADER,
    Features,
    FeaturesHeader,
    FeaturesRun,
    FeaturesWriter,
    check_header,
    read_features_header,
)
from ichfast.store.store import Store
from ichfast.system.files import final_name
from ichfast.system.ranks import Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesReport:
    """What `extract_features` wrote."""

    features: str
    """The folder."""

    slices: int
    """Slices of the store."""

    computed: int
    """Those that have features."""

    num_features: int
    """Features of a slice."""


def extract_features(
    paths: Sequence[Path],
    out: Path,
    *,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    store_path: Path | None = None,
    batch_size: int | None = None,
) -> FeaturesReport | None:
    """Compute the features of a store's slices with the best epoch of one or more runs.

    Args:
        paths: the folders of one run, or of runs on different folds of one store.
        out: the folder to write (`ichfast.series.features`), in one that all ranks see.
            If it has these features already, nothing is done.
        device: where to compute.
        ranks: the processes that share the work; each calls this.
        store_path: the store; None: the one that the runs trained on.
        batch_size: slices at a time; None: as many as fit on a GPU, or the recipe's on
            a CPU.

    Returns:
        What was written; None on ranks that do not write.

    Raises:
        IchfastError: no valid run or store, runs that do not fit together, or features
            of other runs or of another store in `out`.
    """
    runs = [open_run(path) for path in paths]
    with Store(store_path or common_store(runs)) as store:
        tasks = [
            NetworkTask(run=run, positions_M=positions_M, with_features=True)
            for run, positions_M in zip(runs, _positions(runs, store), strict=True)
        ]
        header = FeaturesHeader(
            runs=tuple(map(FeaturesRun.of, runs)),
            store=str(store.path.absolute()),
            store_digest=store.header.digest,
            num_slices=len(store),
            num_features=1,
        )
        if _is_finished(out, header):
            remove_journal(journal_folder(out))
            if not ranks.writes:
                return None
            features = Features.open(out)
            return _report(out, features.header, int((features.run_N >= 0).sum()))
        with compute(
            tasks,
            store,
            journal_folder(out),
            config=ComputeConfig(batch_size=batch_size),
            device=device,
            ranks=ranks,
            label="features",
        ) as journal:
            if not ranks.writes:
                return None
            num_features = journal.tasks[0].num_features
            header = replace(header, num_features=num_features)
            _write(out, header, tasks, journal)
            return _report(out, header, sum(len(task.positions_M) for task in tasks))


def _report(out: Path, header: FeaturesHeader, num_computed: int) -> FeaturesReport:
    return FeaturesReport(
        features=str(out),
        slices=header.num_slices,
        computed=num_computed,
        num_features=header.num_features,
    )


def _positions(runs: Sequence[TrainedRun], store: Store) -> list[Positions]:
    """The slices that each run computes."""
    if len(runs) == 1:
        return [np.arange(len(store), dtype=np.int64)]
    for run in runs:
        if not run.trained_on(store):
            raise PredictionError(
                f"{run.path} was not trained on {store.path}; the features of several "
                "runs are those of the store they were trained on, each of its own fold"
            )
        if run.record.recipe.folds.kind == "slice":
            raise PredictionError(
                f"{run.path} has folds of slices, which cut series; name it alone, or "
                "train with --set folds.kind=patient"
            )
    return [whole_series(store, run.split(store).valid_N) for run in runs]


def _is_finished(out: Path, header: FeaturesHeader) -> bool:
    """Whether a folder has the features; one with others, or other files, is refused.

    Args:
        out: the folder.
        header: of the features, but for what is known when they are computed.
    """
    check_header(header, out)
    if not (out / HEADER).exists():
        known = {HEADER, *ARRAYS}
        if out.exists() and not (
            out.is_dir() and {final_name(path.name) for path in out.iterdir()} <= known
        ):
            raise PredictionError(f"{out} holds other files; name another folder")
        return False
    found = read_features_header(out)
    is_same = [run.digest for run in found.runs] == [run.digest for run in header.runs]
    if not is_same or found.store_digest != header.store_digest:
        raise PredictionError(
            f"{out} has features of another checkpoint or of another store; name "
            "another folder, or delete it"
        )
    return True


def _write(
    out: Path, header: FeaturesHeader, tasks: Sequence[NetworkTask], journal: Journal
) -> None:
    writer = FeaturesWriter(out, header)
    for part in journal.parts:
        rows = journal.rows(part)
        rows_R = journal.read(part.task, part.pass_number, rows.start, rows.stop)
        writer.write(
            tasks[part.task].positions_M[rows],
            features_MD=rows_R["features"],
            logits_MK=rows_R["logits"],
            run=part.task,
        )
    writer.finish()
