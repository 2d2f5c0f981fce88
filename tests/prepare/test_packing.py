"""A packed copy of a store and back has the same bytes, or says in a line why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.errors import StoreError
from ichfast.packed import codec
from ichfast.prepare import packing, prepare
from ichfast.prepare.lock import only_writer
from ichfast.prepare.packing import pack_store
from ichfast.prepare.prepare import prepare_store
from ichfast.store.header import read_header
from ichfast.store.store import Store
from ichfast.store.tables import checked_content
from ichfast.store.verify import verify_store
from tests.conftest import contents, random_hu, write_dicom
from tests.prepare.conftest import remount
from tests.prepare.test_foreign_files import FOREIGN
from tests.store.slice_store import simple_rows, write_slices

pytestmark = pytest.mark.usefixtures("units_of_four")

prepare_kept = partial(prepare_store, labels=None, workers=1, keep_ids=True)

pack = partial(pack_store, workers=2)
unpack = partial(pack, packed=False)

STOPPED = r"^stopped; the same command continues$"


def write_source(source: Path) -> None:
    """Two units of two shapes, a duplicate and a file that is rejected."""
    source.mkdir()
    for k in (0, 1, 10, 2, 3):
        write_dicom(source / f"a{k}", f"ID_{k}", hu_HW=random_hu(k))
    write_dicom(source / "b", "ID_1", hu_HW=random_hu(1))
    (source / "c").write_text("no image")


def append_one(source: Path, store: Path, **options: Any) -> None:
    """Append a slice of ``source-new``, which is made."""
    new = source.with_name("source-new")
    if not new.exists():
        new.mkdir()
        write_dicom(new / "d", "ID_4", hu_HW=random_hu(4))
    prepare_kept([new], store, append=True, **options)


@pytest.fixture(scope="module")
def stores(
    units_of_four: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a store ``raw``, its copy ``packed``, and their source.

    They have three units, the last one appended. Not to be changed.
    """
    folder = tmp_path_factory.mktemp("stores")
    write_source(folder / "source")
    prepare_kept([folder / "source"], folder / "raw", max_rejected="1")
    append_one(folder / "source", folder / "raw")
    pack(folder / "raw", folder / "packed")
    return folder


@pytest.fixture
def raw(stores: Path, tmp_path: Path) -> Path:
    """A copy of the raw store that a test may change."""
    return Path(shutil.copytree(stores / "raw", tmp_path / "raw"))


# The same bytes


def test_a_store_packed_and_unpacked_again_has_the_same_bytes(
    stores: Path, tmp_path: Path
) -> None:
    report = unpack(stores / "packed", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(stores / "raw")
    assert report.slices == 6
    sizes = [read_header(stores / name).num_bytes for name in ("raw", "packed")]
    assert [report.bytes, report.bytes_before] == sizes
    assert not report.already_finished
    for name in ("raw", "packed"):
        assert verify_store(stores / name) == []


@pytest.mark.slow
def test_a_copy_has_the_bytes_that_prepare_packed_makes(
    stores: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    prepare_kept([stores / "source"], store, packed=True, max_rejected="1")
    append_one(stores / "source", store, packed=True)
    assert contents(store) == contents(stores / "packed")


def test_tables_and_digest_are_those_of_the_original(stores: Path) -> None:
    raw, packed = contents(stores / "raw"), contents(stores / "packed")
    for name in ("slices.parquet", "rejected.csv", "journal/entries.parquet"):
        assert raw[name] == packed[name]
    one, other = read_header(stores / "raw"), read_header(stores / "packed")
    assert (one.is_packed, other.is_packed) == (False, True)
    assert (one.digest, one.lineage) == (other.digest, other.lineage)
    shards = {name.replace(".npy", ".icp") for name in raw if "level-" in name}
    assert {name for name in packed if "level-" in name} == shards
    assert len(shards) == 2 * 4


@pytest.mark.parametrize("levels", [(512, 256), (512,)])
def test_a_store_that_prepare_has_not_made_is_packed_too(
    tmp_path: Path, levels: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (9, 7), (64, 48), (9, 7), (1, 33)]
    slices = [rng.integers(0, 2**15, shape, np.uint16) for shape in shapes]
    rows = simple_rows(len(slices))
    labels_NK = np.zeros((len(slices), 6))
    write = partial(write_slices, slices=slices, rows=rows, labels_NK=labels_NK)
    write(tmp_path / "raw", levels=levels, slices_a_unit=3)
    write(tmp_path / "written", levels=levels, slices_a_unit=3, packed=True)
    pack(tmp_path / "raw", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    for one, other in (("written", "packed"), ("raw", "again")):
        found = contents(tmp_path / other)
        del found[".lock"]
        assert found == contents(tmp_path / one)


def test_a_second_run_finds_nothing_to_do(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "new")
    files = sorted((tmp_path / "new").rglob("*"))
    before = [(path, path.stat().st_mtime_ns) for path in files if path.is_file()]
    report = pack(raw, tmp_path / "new")
    assert report.already_finished
    assert report.bytes == read_header(tmp_path / "new").num_bytes
    after = [(path, path.stat().st_mtime_ns) for path in files if path.is_file()]
    assert [each for each in after if each[0].name != ".lock"] == [
        each for each in before if each[0].name != ".lock"
    ]


def test_a_second_run_removes_what_a_killed_one_has_left(
    stores: Path, tmp_path: Path
) -> None:
    new = Path(shutil.copytree(stores / "packed", tmp_path / "new"))
    (new / "journal" / "next").mkdir()
    shutil.copy(new / "slices.parquet", new / "journal" / "next")
    assert pack(stores / "raw", new).already_finished
    assert everything(new) == everything(stores / "packed")


def test_a_second_run_leaves_an_append_to_the_copy_that_was_cut_short(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Path(shutil.copytree(stores / "packed", tmp_path / "new"))
    write_dicom(tmp_path / "i", "ID_9", hu_HW=random_hu(9))
    append = partial(prepare_kept, [tmp_path / "i"], new, append=True, packed=True)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="1 of 1 files done"):
            append()
    before = everything(new)
    assert pack(stores / "raw", new).already_finished
    assert everything(new) == before
    assert append().slices == 7


@pytest.mark.slow
def test_a_packed_store_is_appended_to_like_a_raw_one(
    stores: Path, tmp_path: Path
) -> None:
    write_dicom(tmp_path / "e", "ID_5", hu_HW=random_hu(5))
    for name in ("raw", "packed"):
        shutil.copytree(stores / name, tmp_path / name)
        before = contents(tmp_path / name)
        prepare_kept(
            [tmp_path / "e"], tmp_path / name, append=True, packed=name == "packed"
        )
        after = contents(tmp_path / name)
        shards = {file for file in before if file.startswith("level-")}
        assert {file: after[file] for file in shards} == {
            file: before[file] for file in shards
        }
        assert len(after) == len(before) + 2
    pack(tmp_path / "raw", tmp_path / "packed_after")
    assert contents(tmp_path / "packed_after") == contents(tmp_path / "packed")


def test_without_the_c_library_the_bytes_are_the_same_after_one_warning(
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(codec, "library_paths", list)
    codec._coder.cache_clear()
    try:
        pack(stores / "raw", tmp_path / "packed")
        unpack(tmp_path / "packed", tmp_path / "raw")
    finally:
        codec._coder.cache_clear()
    assert contents(tmp_path / "packed") == contents(stores / "packed")
    assert contents(tmp_path / "raw") == contents(stores / "raw")
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "the C library is missing" in message


# What is refused


def refused(original: Path, store: Path, message: str, *, packed: bool = True) -> None:
    """`pack_store` fails in one line, and changes neither folder."""
    before = [everything(folder) for folder in (original, store)]
    with pytest.raises(StoreError, match=message) as caught:
        pack(original, store, packed=packed)
    assert "\n" not in str(caught.value)
    assert [everything(folder) for folder in (original, store)] == before


def everything(folder: Path) -> dict[str, bytes | None] | None:
    """All files and folders below a folder but its lock; None if there is none."""
    if not folder.exists():
        return None
    found = {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
    found.pop(".lock", None)
    return found


def test_a_store_that_has_that_form_is_refused(stores: Path, tmp_path: Path) -> None:
    refused(stores / "packed", tmp_path / "new", "packed is packed already; copy its")
    refused(stores / "raw", tmp_path / "new", "raw is raw already", packed=False)


def test_the_store_itself_or_a_folder_in_it_is_refused(
    raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(raw)
    for new in (raw, raw / "new", raw / "level-512", raw / ".." / "raw" / "journal"):
        refused(raw, new, "lies in the store itself; name another folder")
    refused(tmp_path / "link", raw / "new", "lies in the store itself")
    refused(raw, tmp_path / "link" / "new", "lies in the store itself")


def test_a_folder_around_the_store_is_refused(raw: Path) -> None:
    refused(raw, raw.parent, "holds files that no store has")


def test_a_folder_with_other_files_is_refused(stores: Path, tmp_path: Path) -> None:
    for number, name in enumerate(FOREIGN):
        new = tmp_path / f"new-{number}"
        (new / name).parent.mkdir(parents=True)
        (new / name).write_text("a year of work")
        refused(stores / "raw", new, r"holds files that no store has.*name a new fold")


def test_files_with_the_names_of_a_store_are_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "new" / "level-512").mkdir(parents=True)
    (tmp_path / "new" / "level-512" / "00000.icp").write_text("a year of work")
    refused(raw, tmp_path / "new", "was not begun by ichfast, .*; name a new folder,")


def test_a_file_in_the_place_of_the_new_folder_is_refused(
    raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").write_text("a year of work")
    with pytest.raises(StoreError, match="name a new folder"):
        pack(raw, tmp_path / "new")
    assert (tmp_path / "new").read_text() == "a year of work"


@pytest.mark.slow
def test_another_store_is_refused(raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_dicom(tmp_path / "f", "ID_6", hu_HW=random_hu(6))
    prepare_kept([tmp_path / "f"], other, packed=True)
    refused(raw, other, "is another store, or a copy of .* before that was changed; n")
    shutil.rmtree(other)
    prepare_kept([tmp_path / "f"], other)  # not packed
    refused(raw, other, "is another store")


def test_an_unfinished_store_of_another_command_is_refused(
    stores: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="the same command continues"):
            prepare_kept([stores / "source"], tmp_path / "new", packed=True)
    refused(raw, tmp_path / "new", "was begun by another command, or from .* before")
    refused(tmp_path / "new", tmp_path / "newer", "is unfinished; run the command that")


def test_a_store_that_lost_its_header_loses_nothing_else(
    stores: Path, raw: Path, tmp_path: Path
) -> None:
    lost = Path(shutil.copytree(stores / "packed", tmp_path / "lost"))
    (lost / "store.json").unlink()
    refused(raw, lost, "was finished, for it has slices.parquet, but its store.json")


def test_a_folder_that_another_process_writes_is_refused(
    raw: Path, tmp_path: Path
) -> None:
    with (
        only_writer(tmp_path / "new"),
        pytest.raises(StoreError, match="another ichfast command is writing"),
    ):
        pack(raw, tmp_path / "new")


@pytest.mark.parametrize("name", ["nowhere", "source"])
def test_what_is_no_store_is_refused(stores: Path, tmp_path: Path, name: str) -> None:
    refused(stores / name, tmp_path / "new", "is not a slice store")


# A damaged original


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 10)


@pytest.mark.parametrize("form", ["raw", "packed"])
@pytest.mark.parametrize(
    "name",
    [
        *("store.json", "slices.parquet", "rejected.csv", "journal/entries.parquet"),
        *("level-512/00000-24x32", "level-256/00001-24x32", "level-256/00002-24x32"),
    ],
)
def test_a_damaged_store_is_refused_and_the_file_named(
    stores: Path, tmp_path: Path, form: str, name: str
) -> None:
    store = Path(shutil.copytree(stores / form, tmp_path / "store"))
    if name.startswith("level-"):
        name += ".npy" if form == "raw" else ".icp"
    sound = (store / name).read_bytes()
    run = partial(pack, store, tmp_path / "new", packed=form == "raw")
    for spoil in (damage, cut, Path.unlink):
        spoil(store / name)
        message = f"{re.escape(name)}|is unfinished"  # without a store.json
        with pytest.raises(StoreError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new" / "store.json").exists()
        assert not list((tmp_path / "new").rglob(".*.tmp"))
        (store / name).write_bytes(sound)
    run()
    other = stores / ("packed" if form == "raw" else "raw")
    assert contents(tmp_path / "new") == contents(other)


def test_a_row_that_no_slice_has_is_checked_too(raw: Path, tmp_path: Path) -> None:
    """The duplicate, the second row of this file."""
    damage(raw / "level-512" / "00001-24x32.npy")
    with Store(raw) as store:
        numbers = [shard.name for shard in store.header.shards]
        rows = store.table[store.table["shard"] == numbers.index("00001-24x32.npy")]
    assert rows["row_in_shard"].tolist() == [0]
    with pytest.raises(StoreError, match=r"00001-24x32.npy is damaged: a row does not"):
        pack(raw, tmp_path / "new")


# No room, and interruptions


def disk_with(free: float) -> SimpleNamespace:
    return SimpleNamespace(
        disk_usage=lambda _: SimpleNamespace(free=free), copyfile=shutil.copyfile
    )


@pytest.mark.parametrize("form", ["raw", "packed"])
def test_a_disk_with_too_little_room_is_refused_and_nothing_stays(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    run = partial(pack, stores / form, packed=form == "raw")
    other = read_header(stores / ("packed" if form == "raw" else "raw"))
    needed = other.num_bytes
    monkeypatch.setattr(packing, "shutil", disk_with(0.9 * needed))
    (tmp_path / "empty").mkdir()
    for new in ("new", "empty"):
        with pytest.raises(StoreError, match=r"takes about 0\.0 GiB more, the disk of"):
            run(tmp_path / new)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []
    monkeypatch.setattr(packing, "shutil", disk_with(1.1 * needed))
    run(tmp_path / "new")


def test_a_run_that_continues_needs_room_for_what_is_missing(
    raw: Path, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", interrupt)
        with pytest.raises(StoreError, match=STOPPED):
            pack(raw, new)
    left = new / "level-256" / f".00000-24x32.icp.{'0' * 12}.tmp"
    left.write_text("what a killed run has left")
    (new / "level-512" / "00000-24x32.icp").unlink()
    monkeypatch.setattr(packing, "shutil", disk_with(100))
    with pytest.raises(StoreError, match="make room, or name a folder on another"):
        pack(raw, new)
    assert not left.exists()
    assert len(list(new.glob("level-*/*.icp"))) == 7
    size = (stores / "packed" / "level-512" / "00000-24x32.icp").stat().st_size
    monkeypatch.setattr(packing, "shutil", disk_with(1.1 * size))
    pack(raw, new)
    assert contents(new) == contents(stores / "packed")


@pytest.mark.slow
def test_a_disk_that_is_full_time_and_again_ends_in_the_same_bytes(
    stores: Path,
    raw: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "shutil", disk_with(2**40))
    store, errors = small_disk / "store", []
    for kib in range(40, 20_000, 60):
        remount(small_disk, f"size={kib}k")
        try:
            pack(raw, store)
        except StoreError as error:
            errors.append(str(error))
        else:
            break
        assert not list(store.glob("**/.*.tmp"))
        assert not (store / "store.json").exists()
    assert len(errors) >= 3
    for message in errors:
        assert re.fullmatch(
            rf"cannot write {store} \(No space left on device\); make room or mend "
            "the disk, then the same command continues"
            rf"|cannot write {store}: No space left on device",
            message,
        )
    assert contents(store) == contents(stores / "packed")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["_check_room", "_Copy.write", "_finish"])
def test_an_interrupted_run_is_one_line_and_continues(
    stores: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    moment: str,
) -> None:
    owner, _, name = f"packing.{moment}".rpartition(".")
    target: Any = packing if owner == "packing" else packing._Copy
    step = getattr(target, name)
    seen: list[object] = []

    def interrupt_third(*arguments: Any) -> Any:
        seen.append(arguments)
        if moment != "_Copy.write" or len(seen) == 3:
            os.kill(os.getpid(), number)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupt_third)
        with pytest.raises(StoreError, match=STOPPED):
            pack(stores / "raw", tmp_path / "new", workers=1)
    new = tmp_path / "new"
    assert not list(new.rglob(".*.tmp"))
    with pytest.raises(StoreError, match=r"unfinished; .*`ichfast pack`"):
        Store(new)
    report = pack(stores / "raw", new)
    assert not report.already_finished
    assert contents(new) == contents(stores / "packed")


def test_files_that_nothing_is_known_of_are_made_again(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run has left that was killed while it removed its folder."""
    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_finish", interrupt)
        with pytest.raises(StoreError, match=STOPPED):
            pack(stores / "raw", new)
    (new / "journal" / "plan.json").unlink()
    damage(new / "level-512" / "00000-24x32.icp")
    pack(stores / "raw", new)
    assert contents(new) == contents(stores / "packed")


def test_a_thread_that_fails_stops_the_others_at_their_next_slice() -> None:
    finished = []

    def write_much(_: int, done: Callable[[], None]) -> None:
        for _ in range(10_000):
            done()
            time.sleep(0.001)
        finished.append("all")

    def fail(*_: object) -> None:
        raise StoreError("damaged")

    jobs: list[Any] = [
        (SimpleNamespace(shard=SimpleNamespace(count=1), write=write), 512)
        for write in (write_much, fail)
    ]
    with pytest.raises(StoreError, match="damaged"):
        packing._copy_shards(jobs, workers=2)
    assert finished == []


def test_complete_files_are_not_made_again(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write = packing._Copy.write

    def watched(copy: Any, level: int, done: Callable[[], None]) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        write(copy, level, done)
        written.append(copy.path(level))

    with monkeypatch.context() as patch:
        patch.setattr(packing._Copy, "write", watched)
        with pytest.raises(StoreError, match="stopped"):
            pack(stores / "raw", tmp_path / "new", workers=1)
        first = [written.pop() for _ in range(3)]
        times = [path.stat().st_mtime_ns for path in first]
        assert len(list((tmp_path / "new").glob("level-*/*.icp"))) == 3
    pack(stores / "raw", tmp_path / "new")
    assert [path.stat().st_mtime_ns for path in first] == times
    assert contents(tmp_path / "new") == contents(stores / "packed")


# A store that changes meanwhile


@pytest.mark.slow
def test_a_copy_is_of_the_store_as_it_was_when_the_run_began(
    stores: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "g", "ID_7", hu_HW=random_hu(7))
    copy_shards = packing._copy_shards

    def append_and_copy(*arguments: Any) -> None:
        prepare_kept([tmp_path / "g"], raw, append=True)
        copy_shards(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_copy_shards", append_and_copy)
        pack(raw, tmp_path / "new")
    assert contents(tmp_path / "new") == contents(stores / "packed")
    refused(raw, tmp_path / "new", r"a copy of .*raw before that was changed; name a n")


def test_a_store_that_changes_while_its_tables_are_read_is_refused(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dicom(tmp_path / "g", "ID_7", hu_HW=random_hu(7))

    def read_and_append(file: Path, *arguments: Any) -> bytes:
        content = checked_content(file, *arguments)
        if file.name == "entries.parquet":  # the last one
            prepare_kept([tmp_path / "g"], raw, append=True)
        return content

    with monkeypatch.context() as patch:
        patch.setattr(packing, "checked_content", read_and_append)
        with pytest.raises(StoreError, match="raw was changed just now; run the comm"):
            pack(raw, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert pack(raw, tmp_path / "new").slices == 7


def test_a_store_that_was_appended_to_is_not_continued(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_copy_shards", interrupt)
        with pytest.raises(StoreError, match="stopped"):
            pack(raw, tmp_path / "new")
    write_dicom(tmp_path / "g", "ID_7", hu_HW=random_hu(7))
    prepare_kept([tmp_path / "g"], raw, append=True)
    refused(raw, tmp_path / "new", r"begun by another command, or from .*raw before th")


# The other form


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_an_unfinished_store_is_not_continued_in_the_other_form(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, packed: bool
) -> None:
    run = partial(prepare_kept, [stores / "source"], tmp_path / "new", max_rejected="1")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "merge", interrupt)
        with pytest.raises(StoreError, match="the same command continues"):
            run(packed=packed)
    before = everything(tmp_path / "new")
    forms = ("yes", "no") if packed else ("no", "yes")
    message = rf"packed \({forms[0]}, now {forms[1]}\); run the command it was made"
    with pytest.raises(StoreError, match=message) as caught:
        run(packed=not packed)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path / "new") == before
    run(packed=packed)
    assert verify_store(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("form", "advice"),
    [
        ("packed", "is packed; add --packed, or make a raw copy with `ichfast unpack"),
        (
            "raw",
            "is raw; leave out --packed, or make a packed copy with `ichfast pack",
        ),
    ],
)
@pytest.mark.parametrize("append", [False, True])
def test_a_finished_store_of_the_other_form_is_refused_with_what_to_do(
    stores: Path, tmp_path: Path, form: str, advice: str, *, append: bool
) -> None:
    store = Path(shutil.copytree(stores / form, tmp_path / "store"))
    before = contents(store)
    with pytest.raises(StoreError) as caught:
        prepare_kept(
            [stores / "source-new"], store, append=append, packed=form == "raw"
        )
    assert str(caught.value) == f"{store} {advice} {store} NEW`"
    assert contents(store) == before


# The commands


@pytest.fixture
def hashed(stores: Path, tmp_path: Path) -> Path:
    """A store with hashed ids, whose key lies beside it."""
    prepare_store(
        [stores / "source"],
        tmp_path / "hashed",
        labels=None,
        workers=1,
        keep_ids=False,
        max_rejected="1",
    )
    return tmp_path / "hashed"


@pytest.mark.slow
def test_the_commands_print_a_line_of_json_and_name_the_key(
    hashed: Path, tmp_path: Path
) -> None:
    new, again = tmp_path / "new", tmp_path / "again"
    ended = CliRunner().invoke(cli, ["pack", str(hashed), str(new)])
    assert ended.exit_code == 0, ended.output
    (line,) = ended.stdout.splitlines()
    report = json.loads(line)
    assert report.pop("seconds") > 0
    assert report == {
        "store": str(new),
        "slices": 5,
        "bytes": read_header(new).num_bytes,
        "bytes_before": read_header(hashed).num_bytes,
        "already_finished": False,
    }
    assert f"{hashed}.key is not copied; to append to {new} or to " in ended.stderr
    ended = CliRunner().invoke(cli, ["unpack", str(new), str(again), "--workers", "1"])
    assert ended.exit_code == 0, ended.output
    assert contents(again) == contents(hashed)
    # As the message says.
    source = tmp_path / "h"
    write_dicom(source, "ID_8", hu_HW=random_hu(8))
    options = ["--append", "--packed", "--id-key", f"{hashed}.key", "--workers", "1"]
    ended = CliRunner().invoke(
        cli, ["prepare", str(source), "--store", str(new), *options]
    )
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["slices"] == 6


def test_an_error_of_the_commands_is_one_line(stores: Path, tmp_path: Path) -> None:
    for command, form in (("pack", "packed"), ("unpack", "raw")):
        ended = CliRunner().invoke(
            cli, [command, str(stores / form), str(tmp_path / "new")]
        )
        assert ended.exit_code == 1
        assert ended.stderr == (
            f"Error: {stores / form} is {form} already; copy its folder if you like\n"
        )
