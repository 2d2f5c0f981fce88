"""What a Dask worker does with a unit: it has it converted by a process beside it.

A Dask worker may be the daemon of a nanny, which must have no workers of its own, and
its threads must not be ended with a decoder that hangs. So it starts processes, of
which each takes one unit after another; what they import costs a second or two, once.

1. One process converts one unit at a time. It is used again when it gave an outcome,
   and killed when it did not.
2. A process stops, and ends, when its stdin is closed: by `end_run`, or by the end of
   the Dask worker, however that comes.
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
"""How long a unit may take to stop before its process is killed, seconds."""

_stopped: set[str] = set()
"""The runs that are over."""

_idle: list[subprocess.Popen[bytes]] = []
"""Processes without a unit."""


def convert_beside(job: Job, unit: Unit, run_id: str) -> int:
    """Convert a unit in a process of this machine; runs in a Dask worker.

    Args:
        job: what it is converted with.
        unit: with absolute paths.
        run_id: after `end_run` with it, the unit is given up.

    Returns:
        How many of its files were rejected.

    Raises:
        StoreError: this machine does not see the store or the source, or the process
            ended.
        StoppedError: the run is over.
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
    """Give up the units of a run, and end the processes that have none."""
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
    """Let a process end by itself, for so long, then kill it."""
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
    """Hand a unit to a process and wait for how it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # Packed twice: the process takes bytes in one thread, and imports what they
        # name in its first, as some modules want it.
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
    """The process: units come in, for each its rejects or an error goes out."""
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
    try:
        with closing(convert_in_processes(job, deque([unit]), 1)) as states:
            for _, num_rejected in states:
                outcome = num_rejected
                if is_over.is_set():
                    break
    except (IchfastError, OSError) as error:
        return error
    return outcome


if __name__ == "__main__":
    _serve()
