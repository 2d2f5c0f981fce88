"""The folder of a store in the making is there for good, and has one writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ichfast.lock import only_writer


def test_each_folder_that_is_made_is_flushed_into_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []

    def note_flush(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", note_flush)
    store = tmp_path / "stores" / "of-2019" / "store"
    with only_writer(store):
        assert flushed == [tmp_path, tmp_path / "stores", tmp_path / "stores/of-2019"]
    with only_writer(store):
        assert len(flushed) == 3


def test_a_relative_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with only_writer(Path("new/../stores/store")):
        assert (tmp_path / "stores" / "store" / ".lock").is_file()
