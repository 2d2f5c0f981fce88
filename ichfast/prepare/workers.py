"""Converting the units of a run that have no page yet, and showing how far it is.

1. The same units are converted in the same way by processes of this machine
   (`ichfast.prepare.pool`) and by a Dask cluster (`ichfast.prepare.dask`); the bytes
   are equal.
2. The display counts files as they are done, several times a second, so the rate
   and the time left are there from the start. A cluster's files are counted when
   their unit is done. Bytes are counted as if all files were of the mean size.
3. However the run ends, no worker converts anything when `convert_units` has returned.
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
    """Convert every unit that has no page yet, the first ones first.

    Args:
        job: what they are converted with.
        units: all units of the run.
        workers: processes at once on this machine; on a cluster, its threads decide.
        scheduler: address of a Dask scheduler, such as ``tcp://HOST:8786``, whose
            workers see the store and the local sources under the same paths.

    Returns:
        How many files that was.

    Raises:
        StoreError: the workers of a unit die, and not because of a file; or the
            cluster cannot be used, or is lost.
        OSError: a worker cannot write.
    """
    done = job.journal.done(units)
    done_numbers = {unit.number for unit in done}
    waiting = deque(unit for unit in units if unit.number not in done_numbers)
    num_done = sum(len(unit.entries) for unit in done)
    num_rejected = sum(job.journal.num_rejected(unit) for unit in done)
    num_files = sum(len(unit.entries) for unit in units)
    num_bytes = sum(unit.entries.num_bytes for unit in units)
    if scheduler is None or not waiting:
        conversion = convert_in_processes(job, waiting, workers)
    else:
        conversion = convert_on_cluster(job, waiting, scheduler)
    mean_bytes = num_bytes / max(num_files, 1)
    with (
        progress("prepare", num_files, "file", unit_bytes=mean_bytes) as bar,
        closing(conversion) as states,
    ):
        bar.initial = bar.n = num_done
        for now_done, now_rejected in states:
            bar.set_postfix_str(
                f"{num_rejected + now_rejected} rejected", refresh=False
            )
            bar.update(num_done + now_done - bar.n)
    return num_files - num_done
