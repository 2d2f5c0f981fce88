"""Converting all units of a run that have no page yet, with a progress display.

1. Processes of this machine (`ichfast.prepare.pool`) and a Dask cluster
   (`ichfast.prepare.dask`) write the same bytes.
2. The display counts files several times a second, so that rate and time left are
   shown from the start. On a cluster, files count when their unit is done. Bytes are
   counted as if all files had the mean size.
3. When `convert_units` has returned or raised, no worker converts any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing

from ichfast.prepare.convert import Job
from ichfast.prepare.dask import convert_on_cluster
from ichfast.prepare.plan import Unit
from ichfast.prepare.pool import convert_in_processes
from ichfast.system.terminal import progress


def convert_units(
    job: Job, units: Sequence[Unit], workers: int, scheduler: str | None = None
) -> int:
    """Convert every unit that has no page yet, in order.

    Args:
        job: the settings of the run.
        units: all units of the run.
        workers: number of processes on this machine; a cluster has its own threads.
        scheduler: address of a Dask scheduler, such as ``tcp://HOST:8786``, whose
            workers have the store and the local sources at the same paths.

    Returns:
        Number of files converted.

    Raises:
        StoreError: a unit's workers die repeatedly, but not because of one file; or
            the cluster cannot be used, or is lost.
        SourceError: too many files in a row do not answer.
        OSError: a worker cannot write.
    """
    done = job.journal.done(units)
    done_numbers = {unit.number for unit in done}
    waiting = deque(unit for unit in units if unit.number not in done_numbers)
    num_done = sum(len(unit.entries) for unit in done)
    num_rejected = sum(job.journal.num_rejected(unit) for unit in done)
    num_files = sum(len(unit.entries) for unit in units)
    num_bytes = sum(unit.entries.num_bytes for unit in units)
    mean_bytes = num_bytes / max(num_files, 1)
    with (
        progress("prepare", num_files, "file", unit_bytes=mean_bytes) as bar,
        closing(
            convert_in_processes(job, waiting, workers)
            if scheduler is None or not waiting
            else convert_on_cluster(job, waiting, scheduler)
        ) as states,
    ):
        bar.initial = bar.n = num_done
        for now_done, now_rejected in states:
            bar.set_postfix_str(
                f"{num_rejected + now_rejected} rejected", refresh=False
            )
            bar.update(num_done + now_done - bar.n)
    return num_files - num_done
