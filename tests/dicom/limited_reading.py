"""Reads a file as a worker of prepare does: with a memory limit and a timer.

The timer counts processor time, so a busy machine makes no difference.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from ichfast.system.memory import limit_memory

EXTRA_BYTES = 2**30
"""Memory that a process may take for a file."""
TIMEOUT_S = 60.0
"""Processor time for a file, seconds."""


def read_limited(content: bytes, extra_bytes: int = EXTRA_BYTES) -> str:
    """Read a file in a process of its own.

    Returns:
        ``stored``, or the code that prepare rejects the file with.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(extra_bytes)],
        input=content,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode < 0:
        return "timeout" if done.returncode == -signal.SIGPROF else "decoder-crash"
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def _read(extra_bytes: int) -> str:
    content = sys.stdin.buffer.read()
    limit_memory(extra_bytes)
    signal.setitimer(signal.ITIMER_PROF, TIMEOUT_S)
    try:
        for _ in read_slices(content):
            pass
    except RejectError as error:
        return error.code
    return "stored"


if __name__ == "__main__":
    sys.stdout.write(_read(int(sys.argv[1])))
