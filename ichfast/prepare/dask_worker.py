"""Converting units on a Dask worker, in a separate process.

The threads of a Dask worker cannot be killed when a decoder hangs. So it starts a
process that converts one unit after another with `ichfast.prepare.pool`, whose workers
have the time and memory limits of one machine. Its imports take one or two seconds,
once.

1. A process converts one unit at a time. It is reused after a result, and killed after
   an error.
2. A process stops and ends when its stdin is closed, by `end_run` or by the end of the
   Dask worker.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import closing, suppress
from pathlib import Path

from ichfast.errors import IchfastError, StoreError
from ichfast.prepare.convert import Job, StoppedError
from ichfast.prepare.plan import Unit
from ichfast.prepare.pool import REFRESH_S, convert_in_processes

STOP_S = 20.0
"""Time for a unit to stop before its process is killed, seconds."""

_stopped: set[str] = set()
"""Ids of the runs that have ended."""

_idle: list[subprocess.Popen[bytes]] = []
"""Processes that wait for a unit."""


def convert_in_subprocess(job: Job, unit: Unit, run_id: str) -> int:
    """Convert a unit in a process of this machine. Runs in a Dask worker.

    Args:
        job: the settings of the run.
        unit: a unit with absolute paths.
        run_id: id of the run; `end_run` with this id stops the unit.

    Returns:
        Number of rejected files.

    Raises:
        StoreError: this machine does not have the store or the source, or the process
            ended.
        StoppedError: the run has ended.
        OSError: the store cannot be written.
    """
    if run_id in _stopped:
        raise StoppedError
    _check_shared(job, unit)
    process = _idle.pop() if _idle else _start()
    try:
        outcome = _ask(process, job, unit, run_id)
    except BaseException:
        _end(process, wait_s=0)
        raise
    _idle.append(process)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def end_run(run_id: str) -> None:
    """Stop the units of a run, and end the idle processes."""
    _stopped.add(run_id)
    while _idle:
        _end(_idle.pop(), wait_s=STOP_S)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _end(process: subprocess.Popen[bytes], wait_s: float) -> None:
    """Wait for a process to end, then kill it."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait_s)
    process.kill()
    process.wait()
    process.stdout.close()


def _ask(
    process: subprocess.Popen[bytes], job: Job, unit: Unit, run_id: str
) -> int | Exception:
    """Send a unit to a process, and wait for the number of rejects or an error."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Pickled twice: the process receives bytes in a thread and unpickles them in
        # its main thread, where some modules must be imported.
        process.stdin.write(pickle.dumps(pickle.dumps((job, unit))))
        process.stdin.flush()
        while not select.select([process.stdout], [], [], REFRESH_S)[0]:
            if run_id in _stopped:
                _end(process, wait_s=STOP_S)
                raise StoppedError
            if process.poll() is not None:  # its children may keep stdout open
                raise EOFError
        outcome: int | Exception = pickle.load(process.stdout)
    except (BrokenPipeError, EOFError) as error:
        raise StoreError(
            f"the process of unit {unit.number} on {socket.gethostname()} ended "
            "without a word; see the worker's log; the same command continues"
        ) from error
    return outcome


def _check_shared(job: Job, unit: Unit) -> None:
    first = unit.entries[0].container
    missing = None
    if not job.journal.path.is_dir():
        missing = job.journal.store
    elif isinstance(first, Path) and not first.parent.is_dir():
        missing = first.parent
    if missing is not None:
        raise StoreError(
            f"the worker on {socket.gethostname()} does not see {missing}; with "
            "--scheduler, store and sources lie where all machines see them under the "
            "same path"
        )


def _serve() -> None:
    """Main loop of the process: units on stdin, results on stdout."""
    orders: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    is_over = threading.Event()

    def read_orders() -> None:
        with suppress(EOFError):
            while True:
                orders.put(pickle.load(sys.stdin.buffer))
        is_over.set()
        orders.put(None)

    threading.Thread(target=read_orders, daemon=True).start()
    for order in iter(orders.get, None):
        job, unit = pickle.loads(order)
        outcome = _convert(job, unit, is_over)
        if is_over.is_set():
            return
        pickle.dump(outcome, sys.stdout.buffer)
        sys.stdout.flush()


def _convert(job: Job, unit: Unit, is_over: threading.Event) -> int | Exception:
    outcome = 0
    conversion = convert_in_processes(job, deque([unit]), 1)
    try:
        with closing(conversion) as states:
            for _, num_rejected in states:
                outcome = num_rejected
                if is_over.is_set():
                    break
    except (IchfastError, OSError) as error:
        return error
    return outcome


if __name__ == "__main__":
    _serve()
