"""Threads that read for their owner, and that the end of a process never waits for.

A `ThreadPoolExecutor` has the interpreter join its threads. One that waits for a disk
that does not answer is never joined, and the process that has said so would not end.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue

Job = Callable[[], object]


class Readers:
    """Some threads that do jobs in the order given, until closed or gone."""

    def __init__(self, count: int) -> None:
        jobs: SimpleQueue[Job | None] = SimpleQueue()
        for _ in range(count):
            threading.Thread(target=_work, args=(jobs,), daemon=True).start()
        self._jobs = jobs
        self._dismiss = weakref.finalize(self, _dismiss, jobs, count)

    def submit(self, job: Job) -> Future[None]:
        """Have a job done; what is given back ends with it, and has what it raised."""
        future: Future[None] = Future()
        self._jobs.put(partial(_do, job, future))
        return future

    def close(self) -> None:
        """Let each thread end, behind all jobs given before."""
        self._dismiss()


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # while this waits for the next, nobody holds what the last one read


def _do(job: Job, future: Future[None]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - raised where it is waited for
        future.set_exception(error)
        del job, future  # the error holds this frame
    else:
        future.set_result(None)


def _dismiss(jobs: SimpleQueue[Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)
