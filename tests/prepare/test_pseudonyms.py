"""The key of hashed ids is made once, kept private, and refused when damaged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ichfast.errors import StoreError
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.pseudonyms import (
    KEY_BYTES,
    plain_text,
    read_or_make_key,
    stored_id,
)
from ichfast.prepare.repair import repair_store
from ichfast.store.store import Store
from tests.conftest import contents
from tests.mutations import mutations

run = partial(prepare_store, labels=None, workers=1, keep_ids=False, limit=3)


def patients(store: Path) -> set[str]:
    with Store(store) as opened:
        return set(opened.table["patient"])


def test_a_hashed_id_depends_on_id_and_key_alone() -> None:
    first, second = bytes(KEY_BYTES), bytes([1]) * KEY_BYTES
    assert stored_id(first, "ID_1") == stored_id(first, "ID_1")
    ids = {
        stored_id(first, "ID_1"),
        stored_id(first, "ID_2"),
        stored_id(second, "ID_1"),
    }
    assert len(ids) == 3
    assert stored_id(None, "ID_1") == "ID_1"
    assert stored_id(first, "") == ""


def test_bytes_that_are_no_text_can_be_stored() -> None:
    assert plain_text("caf\udce9") == "caf\\udce9"


def test_a_missing_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = read_or_make_key(path, is_begun=False)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_make_key(path, is_begun=True) == key


@pytest.mark.parametrize("content", [b"", b"short", bytes(KEY_BYTES + 1)])
def test_a_key_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"has {len(content)} bytes, a key has 32"):
        read_or_make_key(path, is_begun=False)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    read_or_make_key(path, is_begun=False)
    path.chmod(mode)
    with pytest.raises(StoreError, match=f"mode 0{mode:o}.*`chmod 600` it"):
        read_or_make_key(path, is_begun=False)


def test_a_key_that_cannot_be_made_or_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"key .*: No such file or directory; name"):
        read_or_make_key(tmp_path / "nowhere" / "key", is_begun=False)
    with pytest.raises(StoreError, match=r"key .*: Is a directory; name"):
        read_or_make_key(tmp_path, is_begun=False)


def test_stores_with_one_key_name_patients_alike(source: Path, tmp_path: Path) -> None:
    key = source / "secret"  # in a source it is no entry of the listing
    for name in ("one", "two"):
        assert run([source], tmp_path / name, id_key=key).rejected == {}
    run([source], tmp_path / "three")
    assert patients(tmp_path / "one") == patients(tmp_path / "two")
    assert patients(tmp_path / "one").isdisjoint(patients(tmp_path / "three"))
    assert not (tmp_path / "one.key").exists()


def test_the_key_of_the_folder_one_is_in_lies_beside_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    run([source], Path())
    assert (tmp_path / "store.key").is_file()
    assert not list(Path().rglob("*.key"))


def test_a_begun_store_wants_the_key_it_was_begun_with(
    source: Path, tmp_path: Path
) -> None:
    store, key = tmp_path / "store", tmp_path / "secret"
    run([source], store, id_key=key)
    assert run([source], store, id_key=key).already_finished
    with pytest.raises(StoreError, match=r"store.key is missing.*another --id-key"):
        run([source], store)
    read_or_make_key(tmp_path / "other", is_begun=False)
    with pytest.raises(StoreError, match=r"ids \(hashed with key .*, now hashed with"):
        run([source], store, id_key=tmp_path / "other", append=True)


def test_a_repair_wants_that_key_too(source: Path, tmp_path: Path) -> None:
    store, key = tmp_path / "store", tmp_path / "secret"
    run([source], store, id_key=key)
    before = contents(store)
    [shard] = (store / "level-512").iterdir()
    shard.write_bytes(b"damaged")
    read_or_make_key(tmp_path / "other", is_begun=False)
    with pytest.raises(StoreError, match=r"ids \(hashed with key"):
        repair_store(store, [source], id_key=tmp_path / "other")
    repair_store(store, [source], id_key=key)
    assert contents(store) == before


def test_a_key_in_its_store_or_without_use_is_refused(
    source: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    with pytest.raises(StoreError, match="must not lie in the store"):
        run([source], store, id_key=store / "journal" / "key")
    with pytest.raises(StoreError, match="--keep-ids hashes nothing"):
        run([source], store, id_key=tmp_path / "key", keep_ids=True)
    assert not store.exists()
    assert not (tmp_path / "key").exists()


def test_a_copy_of_the_key_that_a_killed_run_has_left_is_removed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.key"
    key = read_or_make_key(path, is_begun=False)
    (tmp_path / ".store.key.0123456789ab.tmp").write_bytes(key)
    assert read_or_make_key(path, is_begun=True) == key
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.usefixtures("listed_once")
def test_a_key_that_is_not_as_it_was_made_hashes_no_id(
    source: Path, tmp_path: Path
) -> None:
    store, key = tmp_path / "store", tmp_path / "store.key"
    run([source], store)
    before, content = contents(store), key.read_bytes()
    for mutated in mutations(content, 0):
        key.write_bytes(mutated)
        for append in (False, True):
            with pytest.raises(StoreError, match=r"bytes, a key has 32|ids \(hashed"):
                run([source], store, append=append)
        assert key.read_bytes() == mutated
    assert contents(store) == before
