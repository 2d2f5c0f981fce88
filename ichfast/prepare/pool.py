"""Worker processes that convert units, each watched over by its parent.

1. A worker that dies, or decodes one file for longer than the job's timeout, costs
   that file and nothing else: its unit is tried again, and the file is rejected
   (``decoder-crash``, ``timeout``) if it does the same again.
2. However the generator ends, no worker is left when it is closed.
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
"""Seconds between two looks at how far the workers are."""

PRELOADED = ("__main__", __name__, "ichfast.cli.main")
"""What the server that processes are forked from has imported.

Python 3.11 does not import `__main__` there (python/cpython#126631), so every worker
runs it again. The command's takes 25 ms, and next to nothing if what it imports is
there already.
"""

MAX_DEATHS = 5
"""Deaths of a unit's worker, at different files, before the run gives up."""


def convert_in_lanes(
    job: Job, waiting: deque[Unit], workers: int
) -> Generator[tuple[int, int]]:
    """Convert units in processes of this machine. Close the generator.

    Args:
        job: what they are converted with.
        waiting: the units; emptied.
        workers: processes at once.

    Yields:
        Several times a second, and at the end: files done and files rejected so far.

    Raises:
        StoreError: the workers of a unit die, and not because of a file.
        OSError: a worker cannot write.
    """
    lanes = [_Lane() for _ in range(min(workers, len(waiting)))]
    idle = list(lanes)
    running: dict[Future[None], tuple[_Lane, Unit]] = {}
    num_done = num_rejected = 0
    try:
        while waiting or running:
            while waiting and idle:
                lane, unit = idle.pop(), waiting.popleft()
                running[lane.submit(job, unit)] = lane, unit
            for future in wait(running, REFRESH_S, FIRST_COMPLETED).done:
                lane, unit = running.pop(future)
                idle.append(lane)
                try:
                    future.result()
                except BrokenProcessPool:
                    waiting.appendleft(_after_death(job, unit, lane.watch))
                    lane.restart()
                else:
                    num_done += len(unit.entries)
                    num_rejected += lane.watch.num_rejected
            watches = [lane.watch for lane, _ in running.values()]
            yield (
                num_done + sum(watch.num_done for watch in watches),
                num_rejected + sum(watch.num_rejected for watch in watches),
            )
    finally:
        for lane in lanes:
            lane.watch.stop = True
        # Together: a process takes milliseconds to end.
        with ThreadPoolExecutor() as closing:
            list(closing.map(_Lane.close, lanes))


class _Lane:
    """A worker process: an executor of one, so that a death names its unit."""

    def __init__(self) -> None:
        # Processes are forked from a clean server that has imported this module,
        # not from here, where threads of torch or DALI may be running.
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
    """The unit to try again, without the entry that ended its worker twice."""
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
