"""Compiles the C sources of packed slices, every warning an error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import ichfast

SOURCES = Path(ichfast.__path__[0]) / "packed"

COMPILERS = ("gcc", "clang", "aarch64-linux-gnu-gcc")
"""For x86-64 and for aarch64, the latter run by qemu."""

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def require_compiler(name: str) -> None:
    """Skip a test whose compiler is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"needs the C compiler {name}")


def compile_c(compiler: str, flags: Sequence[str], output: Path) -> None:
    """Compile the C sources of ichfast.

    Args:
        compiler: its name.
        flags: for it, and further sources.
        output: the file to write.
    """
    command = [compiler, *WARNINGS, "-I", str(SOURCES), "-o", str(output), *flags]
    command += map(str, sorted(SOURCES.glob("*.c")))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
