"""Processes that hold something during a block, and then die as by kill -9."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOLD = """
import sys
from pathlib import Path
from ichfast.system import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def killed_process(
    code: str, *arguments: str, env: Mapping[str, str] = os.environ, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run Python in another process during the block, and then kill it.

    Args:
        code: prints ``ready`` and waits for the end of its stdin.
        arguments: its command line.
        env: its environment, but for PYTHONPATH.
        options: more options of `subprocess.Popen`.
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**env, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def held_elsewhere(lock: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock in the block, then dies as by kill -9."""
    with killed_process(HOLD, lock, str(path)) as process:
        yield process
