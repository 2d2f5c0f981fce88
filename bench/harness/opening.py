"""Time and memory that a fresh process needs to open a store.

python -m bench.harness.opening STORE

Prints the seconds and, as MiB, the peak memory of the process, on one line.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.harness.measure import BenchError
from bench.harness.peak import peak_of

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300
"""Longest wait for the process, seconds."""


def measure_opening(store: Path) -> tuple[float, float]:
    """Open a store in a new process; returns seconds and MiB.

    Raises:
        BenchError: The store could not be opened, or not in time.
    """
    command = [sys.executable, "-m", "bench.harness.opening", str(store)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{store} did not open in {TIMEOUT_S} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise BenchError(f"{store} does not open: {''.join(last)}")
    seconds, mib = map(float, done.stdout.split())
    return seconds, mib


def main(path: str) -> None:
    """Open the store at `path` and print what it cost."""
    from ichfast.store.store import Store

    started_s = time.perf_counter()
    with Store(path):
        print(time.perf_counter() - started_s, peak_of("self"))


if __name__ == "__main__":
    main(sys.argv[1])
