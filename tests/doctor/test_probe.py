"""What the child process finds about torch, apex and the GPUs."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from ichfast.doctor import probe
from ichfast.packed import codec, reference
from ichfast.packed.library import Library
from tests.conftest import write_store


@pytest.fixture
def _forget_apex() -> Iterator[None]:
    yield
    for name in ("apex", "apex.optimizers"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(
    importlib.util.find_spec("apex") is not None, reason="an apex is installed here"
)
@pytest.mark.usefixtures("_forget_apex")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "none"),
        (("apex/__init__.py",), "other"),
        (("apex/__init__.py", "amp_C.py"), "broken"),
        (("apex/__init__.py", "apex/optimizers.py", "amp_C.py"), "nvidia"),
    ],
)
def test_apex_is_told_from_another_project_of_that_name(
    files: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert probe._apex() == expected


def test_what_torch_says_about_a_driver_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found "
            "version 11040). Please update your GPU driver (Triggered internally)",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    facts = probe._torch(Path())
    assert facts["gpus"] == []
    assert facts["gpu_warning"] == (
        "CUDA initialization: The NVIDIA driver on your system is too old (found "
        "version 11040)"
    )


def test_gpus_are_described_with_the_memory_that_a_cache_may_fill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda _: properties,
        "mem_get_info": lambda index: (1000 * index, 5000),
    }
    for name, function in replaced.items():
        monkeypatch.setattr(torch.cuda, name, function)
    first, second = probe._torch(Path())["gpus"]
    assert first["spare_bytes"] == 0
    assert second == {
        "name": "NVIDIA H200",
        "capability": "9.0",
        "memory_bytes": 5000,
        "spare_bytes": 900,
    }


def test_dali_without_the_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("ichfast.loading.dali.gpu_problem", lambda: "no kernel image")
    with pytest.raises(Exception, match="no kernel image"):
        probe._dali(Path())


def test_a_packed_store_is_told_with_the_size_of_its_files(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_store(store, packed=True)
    found = probe._store(store)["store"]
    assert found["is_packed"]
    for level in ("512", "256"):
        files = (store / f"level-{level}").iterdir()
        assert found["level_bytes"][level] == sum(file.stat().st_size for file in files)


def test_what_packs_slices_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, expected in (
        (Mock(Library, vector_instructions="NEON"), "NEON"),
        (Mock(Library, vector_instructions=""), "plain C"),
        (reference, "NumPy"),
    ):
        monkeypatch.setattr(codec, "_coder", lambda library=library: library)
        assert probe._decoders(Path())["packed_by"] == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/u/venv/lib/libx.so: undefined symbol", "libx.so: undefined symbol"),
        ("cannot open '/home/u/a.so'", "cannot open 'a.so'"),
        ("see https://pytorch.org/get/started", "see https://pytorch.org/get/started"),
        ("values/s of a/b", "values/s of a/b"),
    ],
)
def test_folders_are_cut_from_an_error(text: str, shown: str) -> None:
    assert probe._FOLDERS.sub("", text) == shown
