"""The C library, compiled for these tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.packed.compilers import compile_c


@pytest.fixture(scope="session")
def library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built from the sources of this checkout."""
    compiler = next(filter(shutil.which, ("gcc", "clang")), None)
    if compiler is None:
        pytest.skip("needs the C compiler gcc or clang")
    path = tmp_path_factory.mktemp("packed") / "record.so"
    compile_c(compiler, ["-O3", "-shared", "-fPIC"], path)
    return path
