"""Converting units on a Dask cluster, to a store on a shared file system.

Only this module imports distributed (the extra ``dask``), and only when a scheduler's
address is given.

1. A Dask worker passes each unit to a separate process
   (`ichfast.prepare.dask_worker`), in which `ichfast.prepare.pool` converts it. So
   bytes, limits and crashes are those of a run on one machine, for any number of
   threads and with or without nannies.
2. If a Dask worker is lost, another one converts its unit. The first one may still
   write the same bytes, and replaces whole files.
3. Store and local sources must have the same absolute paths on all machines. It is
   checked that workers have them, and that their pages appear here.
4. The end of the run, or of a Dask worker, stops the units in conversion.
5. Every wait ends: without a worker for `NO_WORKER_S`, or without the scheduler, the
   run stops, and the same command continues it.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ichfast.errors import IchfastError, StoreError
from ichfast.prepare.convert import Job
from ichfast.prepare.dask_worker import STOP_S, convert_in_subprocess, end_run
from ichfast.prepare.plan import Unit
from ichfast.prepare.pool import REFRESH_S

if TYPE_CHECKING:
    from distributed import Client

CONNECT_S = 15.0
"""Time for the scheduler to answer, seconds."""

NO_WORKER_S = 60.0
"""Time that a run waits for a worker when there is none, seconds."""

PAGES_S = 90.0
"""Time for pages written on other machines to appear here, seconds. NFS caches a
folder for up to 60 s."""


def convert_on_cluster(
    job: Job, waiting: deque[Unit], scheduler: str
) -> Generator[tuple[int, int]]:
    """Convert units on a Dask cluster. The caller closes the generator.

    Args:
        job: the settings of the run.
        waiting: the units to convert. Emptied.
        scheduler: the scheduler's address, such as ``tcp://HOST:8786``.

    Yields:
        Files done and files rejected so far, several times a second and at the end.
        They count when their unit is done.

    Raises:
        StoreError: distributed is not installed, the cluster cannot be reached or does
            not have the store or a source, or a unit lost its worker too often.
        OSError: a worker cannot write.
    """
    run_id = uuid.uuid4().hex
    job = replace(job, journal=replace(job.journal, store=job.journal.store.absolute()))
    units = list(waiting)
    running: dict[Future[int], Unit] = {}
    num_done = num_rejected = 0
    with _connect(scheduler) as client:
        executor = client.get_executor(pure=False)
        num_wanted = _worker_count(client, scheduler)
        try:
            while waiting or running:
                wanted = num_wanted()
                while waiting and len(running) < wanted:
                    unit = _with_absolute_paths(waiting.popleft())
                    running[
                        executor.submit(convert_in_subprocess, job, unit, run_id)
                    ] = unit
                for future in wait(running, REFRESH_S, FIRST_COMPLETED).done:
                    unit = running.pop(future)
                    num_rejected += _result(future, unit, scheduler)
                    num_done += len(unit.entries)
                yield num_done, num_rejected
        finally:
            _stop(client, running, run_id)
    _wait_for_pages(job, units)


def _connect(scheduler: str) -> Client:
    if "://" not in scheduler:
        # Client would wait for a long time, and log again when it is collected.
        raise StoreError(
            f"no Dask scheduler has the address {scheduler!r}; give the one that "
            "`dask scheduler` prints, such as tcp://HOST:8786"
        )
    try:
        from distributed import Client
    except ImportError as error:
        raise StoreError(
            f"cannot use the scheduler {scheduler}: {error}; "
            "pip install 'ichfast[dask]'"
        ) from error
    try:
        return Client(  # type: ignore[no-untyped-call]
            scheduler, timeout=CONNECT_S, set_as_default=False
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise StoreError(
            f"no Dask scheduler answers at {scheduler} within {CONNECT_S:.0f} s; give "
            "the address that `dask scheduler` prints, such as tcp://HOST:8786"
        ) from error


def _worker_count(client: Client, scheduler: str) -> Callable[[], int]:
    """A function that returns the number of units to submit: two for each thread."""
    seen_s = time.monotonic()

    def count() -> int:
        nonlocal seen_s
        try:
            threads = client.nthreads()  # type: ignore[no-untyped-call]
        except (OSError, TimeoutError) as error:
            raise _lost(scheduler) from error
        num_threads = sum(threads.values())
        if num_threads:
            seen_s = time.monotonic()
        elif time.monotonic() - seen_s > NO_WORKER_S:
            raise StoreError(
                f"the scheduler {scheduler} had no worker for {NO_WORKER_S:.0f} s; "
                f"start some with `dask worker {scheduler}`, then the same command "
                "continues"
            )
        return 2 * num_threads

    return count


def _with_absolute_paths(unit: Unit) -> Unit:
    return replace(unit, entries=unit.entries.absolute())


def _result(future: Future[int], unit: Unit, scheduler: str) -> int:
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        return future.result()
    except (CancelledError, CommClosedError) as error:
        raise _lost(scheduler) from error
    except (IchfastError, OSError):
        raise
    except KilledWorker as error:
        raise StoreError(
            f"unit {unit.number} lost its worker again and again; see the workers' "
            "logs; if memory ran out, give them fewer threads; the same command "
            "continues"
        ) from error
    except Exception as error:
        raise StoreError(
            f"the workers of {scheduler} cannot convert unit {unit.number} "
            f"({type(error).__name__}); install this version of ichfast on all of them"
        ) from error


def _lost(scheduler: str) -> StoreError:
    return StoreError(
        f"the Dask scheduler at {scheduler} is gone; start it again, then the same "
        "command continues"
    )


def _stop(client: Client, running: Collection[Future[int]], run_id: str) -> None:
    if client.status != "running":  # the scheduler may be lost
        return
    with suppress(OSError, TimeoutError):  # the scheduler may be lost now
        client.run(end_run, run_id, on_error="ignore")
        wait(running, STOP_S)
    for future in running:
        future.cancel()


def _wait_for_pages(job: Job, units: Sequence[Unit]) -> None:
    deadline_s = time.monotonic() + PAGES_S
    while len(job.journal.done(units)) < len(units):
        if time.monotonic() > deadline_s:
            raise StoreError(
                f"the workers' files do not appear in {job.journal.store}; name a "
                "--store on a file system that this machine and all workers share"
            )
        os.listdir(job.journal.path)  # noqa: PTH208  refreshes NFS' cache
        time.sleep(REFRESH_S)
