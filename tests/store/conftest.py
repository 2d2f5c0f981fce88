"""A store that prepare has made, with every file that a store can have."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ichfast.prepare.prepare import prepare_store
from tests.conftest import contents, random_hu, write_dicom

TABLES = ("slices.parquet", "rejected.csv", "journal/entries.parquet")
SHARDS = tuple(
    f"level-{level}/{name}"
    for level in (512, 256)
    for name in ("00000-17x13.npy", "00000-24x32.npy", "00001-24x32.npy")
)
FILES = ("store.json", *TABLES, *SHARDS)
"""All files of `sound`, except its lock."""


@pytest.fixture(scope="module")
def sound(units_of_four: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """A store in two units, of two shapes; one row of a shard is a duplicate.

    Its ids are kept. Not to be changed.
    """
    source = tmp_path_factory.mktemp("source")
    for k in (0, 1, 10, 2, 3):
        write_dicom(source / f"a{k}", f"ID_{k}", hu_HW=random_hu(k))
    write_dicom(source / "b", "ID_1", hu_HW=random_hu(1))
    (source / "c").write_text("no image")
    store = tmp_path_factory.mktemp("sound") / "store"
    prepare_store(
        [source], store, labels=None, workers=1, keep_ids=True, max_rejected="1"
    )
    assert set(contents(store)) - {".lock"} == set(FILES)
    return store


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    """A copy of `sound` that a test may damage."""
    return Path(shutil.copytree(sound, tmp_path / "store"))
