"""The store without pixels opens as a real one does."""

from __future__ import annotations

from pathlib import Path

from bench.inputs.bigstore import write_big_store
from ichfast.store.store import Store


def test_a_store_of_holes_has_every_slice_and_takes_no_disk(tmp_path: Path) -> None:
    write_big_store(tmp_path / "store", 2500)
    with Store(tmp_path / "store") as store:
        assert len(store) == store.table["slice_id"].nunique() == 2500
        assert [shard.count for shard in store.header.shards] == [1024, 1024, 452]
        for index in (0, 1234, 2499):
            assert store.slice_HW(index, check=False).shape == (512, 512)
            assert not store.slice_HW(index, 256, check=False).any()
    files = {file.stat().st_ino: file.stat() for file in tmp_path.rglob("*.npy")}
    assert sum(file.st_blocks * 512 for file in files.values()) < 2**20
