"""A pool of worker processes that convert units, supervised by their parent.

1. A file that ends its worker, or takes longer to decode than the job's timeout, costs
   only itself. Its unit is tried again, and if the same happens the file is rejected
   (``decoder-crash``, ``timeout``).
2. No worker is left once the generator is closed.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from ichfast.errors import StoreError
from ichfast.prepare.convert import Job, Watch, convert_unit, start_worker
from ichfast.prepare.plan import Unit

log = logging.getLogger(__name__)

REFRESH_S = 0.2
"""Seconds between two updates of the workers' progress."""

PRELOADED = ("__main__", __name__, "ichfast.cli.main")
"""Modules that the fork server imports before it forks workers.

Python 3.11 does not import `__main__` there (python/cpython#126631), so each worker
runs it again. For the `ichfast` command that takes 25 ms, and nearly nothing when its
imports are loaded.
"""

MAX_DEATHS = 5
"""Deaths of a unit's workers, at different files, that end the run."""


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
        OSError: a worker cannot write.
    """
    pool = [_Worker() for _ in range(min(workers, len(waiting)))]
    idle = list(pool)
    running: dict[Future[None], tuple[_Worker, Unit]] = {}
    num_done = num_rejected = 0
    try:
        while waiting or running:
            while waiting and idle:
                worker, unit = idle.pop(), waiting.popleft()
                running[worker.submit(job, unit)] = worker, unit
            for future in wait(running, REFRESH_S, FIRST_COMPLETED).done:
                worker, unit = running.pop(future)
                idle.append(worker)
                try:
                    future.result()
                except (BrokenProcessPool, MemoryError):
                    waiting.appendleft(_after_death(job, unit, worker.watch))
                    worker.restart()
                else:
                    num_done += len(unit.entries)
                    num_rejected += worker.watch.num_rejected
            watches = [worker.watch for worker, _ in running.values()]
            yield (
                num_done + sum(watch.num_done for watch in watches),
                num_rejected + sum(watch.num_rejected for watch in watches),
            )
    finally:
        for worker in pool:
            worker.watch.stop = True
        # In parallel, because each process takes milliseconds to end.
        with ThreadPoolExecutor() as closing:
            list(closing.map(_Worker.close, pool))


class _Worker:
    """One worker process. An executor of one, so that a death belongs to one unit."""

    def __init__(self) -> None:
        # Forked from a clean server, because threads of torch or DALI may be running
        # in this process.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        self.watch: Watch = self._context.RawValue(Watch)
        self._executor = self._start()

    def submit(self, job: Job, unit: Unit) -> Future[None]:
        self.watch.position = -1
        self.watch.num_done = self.watch.num_rejected = len(unit.banned)
        return self._executor.submit(convert_unit, job, unit)

    def restart(self) -> None:
        self.close()
        self._executor = self._start()

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            mp_context=self._context,
            initializer=start_worker,
            initargs=(self.watch,),
        )


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
            "because of one file; if memory ran out, use fewer --workers; a script "
            'must be a file and call this under `if __name__ == "__main__":`, for '
            "workers run it again; the same command continues"
        )
    return replace(unit, deaths=deaths)
