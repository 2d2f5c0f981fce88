"""The folder of an unfinished store survives power loss and has one writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ichfast.errors import StoreError
from ichfast.prepare.lock import only_writer


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


def test_a_store_that_is_a_link_in_part_is_not_written(tmp_path: Path) -> None:
    # Clearing the journal would remove what the link leads to.
    (tmp_path / "others").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "journal").symlink_to(tmp_path / "others")
    with (
        pytest.raises(StoreError, match="journal is a link"),
        only_writer(tmp_path / "store"),
    ):
        pass
