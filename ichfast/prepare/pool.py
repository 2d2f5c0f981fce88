"""A pool of worker processes that convert units, supervised by their parent.

1. A file that ends its worker, or takes longer to decode than the job's timeout, costs
   only itself. Its unit is tried again, and if the same happens the file is rejected
   (``decoder-crash``, ``timeout``).
2. No worker is left once the generator is closed, except one that the kernel does not
   let end because a file does not answer. It writes nothing any more.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections import deque
from collections.abc import Collection, Generator
from contextlib import suppress
from dataclasses import replace

from ichfast.errors import StoreError
from ichfast.prepare.convert import Job, Watch, serve_units
from ichfast.prepare.plan import Unit
from ichfast.system.fork_server import ForkServer, Worker, end_workers, ready_workers

log = logging.getLogger(__name__)

REFRESH_S = 0.2
"""Seconds between two updates of the workers' progress."""

MAX_DEATHS = 5
"""Deaths of a unit's workers, at different files, that end the run."""


_server = ForkServer(serve_units)
"""Starts with the first worker, and ends with this process. Importing takes it most of
a second, so that runs share it."""
atexit.register(_server.close)


def convert_in_processes(
    job: Job, waiting: deque[Unit], workers: int
) -> Generator[tuple[int, int]]:
    """Convert units in processes of this machine. The caller closes the generator.

    Args:
        job: the settings of the run.
        waiting: the units to convert. Emptied.
        workers: number of processes.

    Yields:
        Files done and files rejected so far, several times a second and at the end.

    Raises:
        StoreError: a unit's workers die repeatedly, but not because of one file.
        SourceError: too many files in a row do not answer.
        OSError: a worker cannot write.
    """
    num_workers = min(workers, len(waiting))
    running: dict[Worker, Unit] = {}
    idle: list[Worker] = []
    num_done = num_rejected = 0
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                worker = idle.pop() if idle else _server.start()
                running[worker] = waiting.popleft()
                _submit(worker, job, running[worker])
            for worker in ready_workers(running, REFRESH_S):
                unit = running.pop(worker)
                idle.append(worker)
                try:
                    _check_result(worker)
                except (EOFError, MemoryError):
                    _end([idle.pop()])
                    waiting.appendleft(_after_death(job, unit, _watch(worker)))
                else:
                    num_done += len(unit.entries)
                    num_rejected += _watch(worker).num_rejected
            watches = [_watch(worker) for worker in running]
            yield (
                num_done + sum(watch.num_done for watch in watches),
                num_rejected + sum(watch.num_rejected for watch in watches),
            )
    finally:
        _end([*running, *idle])


def _watch(worker: Worker) -> Watch:
    return Watch.from_buffer(worker.shared)


def _submit(worker: Worker, job: Job, unit: Unit) -> None:
    watch = _watch(worker)
    watch.position = -1
    watch.num_done = watch.num_rejected = len(unit.banned)
    with suppress(OSError):  # it has died, as its result will tell
        worker.send((job, unit))


def _check_result(worker: Worker) -> None:
    """Raise the error of a worker's unit, or an EOFError if it has died."""
    error = worker.receive()
    if error is not None:
        raise error


def _end(workers: Collection[Worker]) -> None:
    for worker in workers:
        _watch(worker).stop = True
    end_workers(workers)


def _after_death(job: Job, unit: Unit, watch: Watch) -> Unit:
    """The unit to try again, without an entry that has ended its worker twice."""
    position = watch.position
    if position >= 0 and position in unit.deaths:
        hung = time.monotonic() - watch.since_s >= job.timeout_s
        code = "timeout" if hung else "decoder-crash"
        log.warning("a file ended its worker twice and is rejected: %s", code)
        return replace(unit, banned={**unit.banned, position: code}, deaths=())
    deaths = (*unit.deaths, position)
    if len(deaths) == MAX_DEATHS or deaths.count(-1) == 2:
        raise StoreError(
            f"the worker process of unit {unit.number} died {len(deaths)} times, not "
            "because of one file; if memory ran out, use fewer --workers; the same "
            "command continues"
        )
    return replace(unit, deaths=deaths)
