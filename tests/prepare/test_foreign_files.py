"""Prepare removes and changes nothing that it did not make, in any folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ichfast.errors import IchfastError, SourceError, StoreError
from ichfast.prepare import prepare
from ichfast.prepare.merge import merge
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.repair import repair_store
from ichfast.system.locks import MARK
from tests.conftest import contents

pytestmark = pytest.mark.usefixtures("units_of_four")

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)

HEX = "0123456789ab"

LIKE_OURS = (
    *(".lock", "store.json", "slices.parquet", "rejected.csv"),
    *("journal/plan.json", "journal/00000.page", "journal/entries.parquet"),
    *("journal/next/store.json", "journal/repair/level-512/00000.npy"),
    *("level-512/00000.npy", "level-512/00001-9x9.npy", "level-256/00000.npy"),
    *(f".slices.parquet.{HEX}.tmp", f"level-512/.00000.npy.{HEX}.tmp"),
    *(f"journal/.plan.json.{HEX}.tmp", f"level-256/.00000.icp.{HEX}.tmp"),
    *("level-512/00000.icp", "level-256/00001-9x9.icp"),
)
"""Names of a store's files."""

FOREIGN = (
    *("thesis.tmp", ".thesis.tmp", f".thesis.{HEX}.tmp", "notes.txt", "store.json.bak"),
    *("journal/diary.txt", "journal/.diary.tmp", "journal/next/week", "journal/a/b/c"),
    *("journal/repair/bill.pdf", "journal/00000.page.bak", "level-512/photo.npy"),
    *(
        "level-512/.photo.tmp",
        "level-256/00000.jpg",
        "level-128/00000.npy",
        ".git/HEAD",
        "level-512/photo.icp",
        "level-512/00000.icp.npy",
        "00000.icp",
    ),
)
"""Names that no store has."""

LINKS = ("journal", "level-512", "store.json", "journal/next", "level-256/00000.npy")
"""Names of a store's files and folders, as links."""

TEXTS = (b"", b"{}", b'{"format": 3}', b"x" * 3000, b"locked by ichfas")


def snapshot(folder: Path) -> dict[str, object]:
    """All files, folders and links below a folder, with what they hold."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def scatter(folder: Path, rng: np.random.Generator, names: tuple[str, ...]) -> None:
    """Make about a quarter of the files with these names, and at least one."""
    chosen = rng.random(len(names)) < 0.25
    chosen[rng.integers(len(names))] = True
    for name in np.array(names)[chosen]:
        path = folder / str(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.resolve().is_relative_to(folder) and not path.exists():
            path.write_bytes(TEXTS[rng.integers(len(TEXTS))])


def make_folder(folder: Path, seed: int) -> None:
    """A folder of a user; it may look like a store."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    if seed % 5 == 0:
        target = folder.with_name("elsewhere") / "mine"
        target.mkdir(parents=True, exist_ok=True)
        (target / "thesis.tmp").write_text("a year of work")
        link = folder / LINKS[rng.integers(len(LINKS))]
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    scatter(folder, rng, (LIKE_OURS, FOREIGN, LIKE_OURS + FOREIGN)[seed % 3])


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def disturb(store: Path, source: Path, empty: Path) -> None:
    """Prepare from an empty source, a failing one, and with Ctrl-C."""
    with pytest.raises(IchfastError):
        run([empty], store)
    for disturbance in (interrupt, fail):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepare, "convert_units", disturbance)
            with pytest.raises(StoreError):
                run([source], store)
    with pytest.raises(SourceError):
        run([source / "nowhere"], store)
    with pytest.raises(IchfastError):
        run([empty], store, append=True)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "readme.txt").write_text("no slice")
    return folder


@pytest.mark.usefixtures("listed_once")
@pytest.mark.parametrize("seed", range(50))
def test_a_folder_of_a_user_stays_as_it_is(
    seed: int, source: Path, empty: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make_folder(home / "mine", seed)
    before = snapshot(home)
    disturb(home / "mine", source, empty)
    assert snapshot(home) == before


@pytest.mark.parametrize("name", ["thesis.tmp", "journal/00000.page"])
def test_an_empty_source_does_not_empty_a_folder(
    name: str, empty: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    (mine / name).parent.mkdir(parents=True)
    (mine / name).write_text("a year of work")
    (mine / "level-512").mkdir()
    with pytest.raises(StoreError, match="name a new folder"):
        run([empty], mine)
    assert (mine / name).read_text() == "a year of work"


def unfinished(source: Path, store: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="the same command continues"):
            run([source], store)


@pytest.mark.slow
@pytest.mark.usefixtures("listed_once")
@pytest.mark.parametrize("make", [unfinished, lambda *paths: run([paths[0]], paths[1])])
def test_a_store_with_other_files_in_it_stays_as_it_is(
    make: Callable[[Path, Path], Any], source: Path, empty: Path, tmp_path: Path
) -> None:
    make(source, tmp_path / "genuine")
    for seed in range(8):
        store = shutil.copytree(tmp_path / "genuine", tmp_path / f"store-{seed}")
        scatter(store, np.random.default_rng(seed), FOREIGN)
        before = snapshot(store)
        disturb(store, source, empty)
        with pytest.raises(StoreError):
            repair_store(store, [source])
        assert snapshot(store) == before


def test_a_damaged_journal_loses_no_page(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    unfinished(source, store)
    plan = store / "journal" / "plan.json"
    plan.write_bytes(plan.read_bytes()[:20])
    before = snapshot(store)
    with pytest.raises(StoreError, match="was made from something else"):
        run([source], store)
    assert snapshot(store) == before


def test_an_empty_folder_stays_empty_and_a_new_one_is_removed(
    empty: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(SourceError, match="none of 1 files is an axial CT slice"):
            run([empty], tmp_path / name)
    assert snapshot(tmp_path / "mine") == {}
    assert not (tmp_path / "new").exists()


def test_a_file_that_comes_while_the_run_lasts_stays(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"

    def merge_late(*arguments: Any) -> Any:
        for name in FOREIGN:
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (store / name).write_text("mine")
        return merge(*arguments)

    monkeypatch.setattr(prepare, "merge", merge_late)
    with pytest.raises(SourceError, match="none of 1 files"):
        run([empty], store)
    assert set(contents(store)) == set(FOREIGN)


def test_a_run_killed_before_it_marked_the_folder_continues(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / ".lock").touch()
    run([source], store)
    assert (store / ".lock").read_text() == MARK


def test_what_a_killed_repair_has_left_is_removed_and_nothing_else(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run([source], store)
    before = snapshot(store)
    (store / "journal" / "repair" / "level-512").mkdir(parents=True)
    (store / "journal" / "repair" / "level-512" / "00000.npy").touch()
    copy = store / "level-512" / f".00000-24x32.npy.{HEX}.tmp"
    copy.touch()
    shard = min((store / "level-512").glob("0*.npy"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    assert repair_store(store, [source]).repaired == (f"level-512/{shard.name}",)
    assert snapshot(store) == before
