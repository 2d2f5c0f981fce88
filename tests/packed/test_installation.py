"""The C library is built where there is a compiler; NumPy replaces it elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.lib
import pytest

import ichfast
from ichfast.packed import codec, pack, unpack_into
from ichfast.packed.library import Library, library_paths
from tests.packed.compilers import require_compiler

ROOT = Path(ichfast.__path__[0]).parent


@pytest.fixture(autouse=True)
def _no_library_is_loaded_yet() -> Iterator[None]:
    codec._coder.cache_clear()
    yield
    codec._coder.cache_clear()


def build(folder: Path, compiler: str) -> list[Path]:
    """Build as `pip install` does; return the libraries."""
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "setup.py",
        "build",
        "--build-base",
        str(folder / "temp"),
    ]
    done = subprocess.run(
        [*command, "--build-lib", str(folder / "lib")],
        cwd=ROOT,
        env={**os.environ, "CC": compiler},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    packed = folder / "lib" / "ichfast" / "packed"
    sources = {path.name for path in packed.glob("*.[ch]*")}
    assert {"record.c", "record.h", "rows_neon.c", "unpack.cu"} <= sources
    return sorted(packed.glob("*.so"))


@pytest.mark.slow
def test_an_installation_has_the_library(tmp_path: Path) -> None:
    require_compiler("gcc")
    (path,) = build(tmp_path, "gcc")
    assert path.name in {each.name for each in library_paths()}
    stored_HW = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert len(Library(path).pack(stored_HW)) == 128


@pytest.mark.slow
def test_an_installation_goes_on_without_a_compiler(tmp_path: Path) -> None:
    assert build(tmp_path, "/no/such/compiler") == []


def check_reference(caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Slices are packed and unpacked, with one warning."""
    stored_HW = np.arange(12, dtype=np.uint16).reshape(3, 4)
    out_HW = np.empty_like(stored_HW)
    for _ in range(2):
        unpack_into(pack(stored_HW), out_HW)
        np.testing.assert_array_equal(out_HW, stored_HW)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert reason in record.message
    assert (
        "so NumPy packs, unpacks and halves slices, many times slower" in record.message
    )
    assert "\n" not in record.message


def test_numpy_unpacks_with_one_warning_where_the_library_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(codec, "library_paths", lambda: [Path("/no/such/_record.so")])
    check_reference(caplog, "it was not built when ichfast was installed")


def test_numpy_unpacks_with_one_warning_where_the_library_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "_record.so"
    path.write_bytes(b"of another machine")
    monkeypatch.setattr(codec, "library_paths", lambda: [path])
    check_reference(caplog, "_record.so: ")


def test_numpy_unpacks_with_one_warning_where_the_library_is_of_another_version(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A library without any function of ours.
    monkeypatch.setattr(codec, "library_paths", lambda: [Path(pyarrow.lib.__file__)])
    check_reference(caplog, "undefined symbol: ichfast_vector_instructions")


def test_the_library_is_used_without_a_warning_where_it_is_there(
    library_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(codec, "library_paths", lambda: [library_path])
    pack(np.zeros((3, 4), np.uint16))
    assert isinstance(codec._coder(), Library)
    assert caplog.records == []
