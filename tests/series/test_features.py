"""The features folder: written by parts, read with every check."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ichfast.errors import PredictionError
from ichfast.series.features import (
    FEATURES,
    HEADER,
    LOGITS,
    RUN,
    Features,
    FeaturesHeader,
    FeaturesRun,
    FeaturesWriter,
)
from ichfast.store.store import Store
from ichfast.system.checksums import with_checksum

RUN_0 = FeaturesRun(
    name="first",
    path="/runs/first",
    digest="ab" * 32,
    arch="tiny",
    size=64,
    windows=("brain", "subdural", "bone"),
    num_channels=3,
    fold=0,
)
RUN_1 = replace(RUN_0, name="second", path="/runs/second", fold=1)
HEADER_9 = FeaturesHeader(
    runs=(RUN_0, RUN_1),
    store="/data/store",
    store_digest="0123456789abcdef",
    num_slices=9,
    num_features=5,
)
RNG = np.random.default_rng(0)
FEATURES_ND = RNG.normal(size=(9, 5)).astype(np.float32)
LOGITS_NK = RNG.normal(size=(9, 6)).astype(np.float32)
ROWS = {0: np.array([0, 1, 4]), 1: np.array([2, 3, 8])}


def write_part(writer: FeaturesWriter, run: int) -> None:
    writer.write(
        ROWS[run],
        features_MD=FEATURES_ND[ROWS[run]],
        logits_MK=LOGITS_NK[ROWS[run]],
        run=run,
    )


def write_features(folder: Path) -> Path:
    writer = FeaturesWriter(folder, HEADER_9)
    write_part(writer, 0)
    write_part(writer, 1)
    writer.finish()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_features(tmp_path / "below" / "features")


def test_features_are_read_as_they_were_written(folder: Path) -> None:
    features = Features.open(folder)
    assert features.run_N.tolist() == [0, 0, 1, 1, 0, -1, -1, -1, 1]
    has_run_N = features.run_N >= 0
    half_ND = FEATURES_ND.astype(np.float16)
    np.testing.assert_array_equal(features.features_ND[has_run_N], half_ND[has_run_N])
    np.testing.assert_array_equal(features.logits_NK[has_run_N], LOGITS_NK[has_run_N])
    assert not features.features_ND[~has_run_N].any()
    assert features.header.runs == (RUN_0, RUN_1)
    assert isinstance(features.features_ND, np.memmap)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        (HEADER, FEATURES, LOGITS, RUN)
    )


def test_unfinished_features_are_refused_and_written_anew(tmp_path: Path) -> None:
    whole, again = write_features(tmp_path / "whole"), tmp_path / "again"
    write_part(FeaturesWriter(again, HEADER_9), 0)
    with pytest.raises(PredictionError, match=r"has no finished features .* features"):
        Features.open(again)
    (again / RUN).write_bytes(b"cut")
    write_features(again)
    for path in whole.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_finished_features_are_not_overwritten(folder: Path) -> None:
    with pytest.raises(PredictionError, match="holds features already; name another"):
        FeaturesWriter(folder, HEADER_9)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ((), r"has 0 runs, expected 1 to 100"),
        ((RUN_0, RUN_0), r"two of its runs have the same fold"),
        (
            (RUN_0, replace(RUN_1, size=96)),
            r"one arch, size and windows: first is tiny at 64 .*, second is tiny at 96",
        ),
        ((RUN_0, replace(RUN_1, arch="resnet")), r"second is resnet at 64"),
        ((RUN_0, replace(RUN_1, num_channels=9)), r"one arch, size and windows"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(
    tmp_path: Path, runs: tuple[FeaturesRun, ...], message: str
) -> None:
    header = replace(HEADER_9, runs=runs)
    with pytest.raises(PredictionError, match=message):
        FeaturesWriter(tmp_path / "new", header)
    assert not (tmp_path / "new").exists()
    tmp_path.joinpath(HEADER).write_text(header.to_json())
    with pytest.raises(PredictionError, match=rf"{HEADER} is damaged: .*{message}"):
        Features.open(tmp_path)


@pytest.mark.parametrize("value", [np.nan, 7e4])
def test_features_that_float16_does_not_hold_are_refused(
    tmp_path: Path, value: float
) -> None:
    writer = FeaturesWriter(tmp_path, HEADER_9)
    with (
        np.errstate(over="ignore"),
        pytest.raises(PredictionError, match=r"/runs/first .* not finite.* train it"),
    ):
        writer.write(
            np.array([0]),
            features_MD=np.full((1, 5), value, np.float32),
            logits_MK=LOGITS_NK[:1],
            run=0,
        )
    assert (writer.run_N == -1).all()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        PredictionError, match=r"^cannot write features to .*; make room, or name"
    ):
        FeaturesWriter(tmp_path / "file" / "features", HEADER_9)


def test_a_full_disk_is_noticed_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PredictionError, match="No space left on device; make room"):
        FeaturesWriter(tmp_path, HEADER_9)


def save(folder: Path, name: str, array: object) -> None:
    """Replace an array, and give the header its checksum."""
    np.save(folder / name, cast(Any, array))
    refit(folder)


def refit(folder: Path) -> None:
    writer = object.__new__(FeaturesWriter)
    writer.folder, writer.header = folder, HEADER_9
    writer.finish()


def add_byte(folder: Path) -> None:
    with (folder / LOGITS).open("ab") as file:
        file.write(b"\0")
    refit(folder)


def cut(folder: Path) -> None:
    (folder / FEATURES).write_bytes((folder / FEATURES).read_bytes()[:-2])
    refit(folder)


def flip(folder: Path) -> None:
    content = bytearray((folder / FEATURES).read_bytes())
    content[-1] ^= 1
    (folder / FEATURES).write_bytes(content)


def make_pipe(folder: Path) -> None:
    (folder / RUN).unlink()
    os.mkfifo(folder / RUN)


def write_hostile_npy(folder: Path) -> None:
    text = "{'descr': '<f2', 'fortran_order': False, 'shape': (9, 10000000000), }"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    (folder / FEATURES).write_bytes(content)
    refit(folder)


def write_zeros(folder: Path) -> None:
    (folder / RUN).write_bytes(b"\0" * 137)
    refit(folder)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped bit": (flip, rf"{FEATURES} is damaged: its checksum is wrong"),
    "missing": (lambda f: (f / RUN).unlink(), rf"{RUN} is damaged: no such file"),
    "pipe": (make_pipe, rf"{RUN} is damaged: no such file, or not a regular one"),
    "longer": (add_byte, rf"{LOGITS} is damaged: it has \d+ bytes, expected \d+"),
    "shorter": (cut, rf"{FEATURES} is damaged: it has \d+ bytes"),
    "type": (
        lambda f: save(f, FEATURES, FEATURES_ND),
        rf"{FEATURES} is damaged: it is an array of float32, .*expected float16",
    ),
    "shape": (lambda f: save(f, RUN, np.zeros((8,), np.int8)), r"shape \(8,\)"),
    "order": (
        lambda f: save(f, LOGITS, np.asfortranarray(LOGITS_NK)),
        rf"{LOGITS} is damaged",
    ),
    "objects": (
        lambda f: save(f, RUN, np.array([None] * 9)),
        rf"{RUN} is damaged: it is an array of object",
    ),
    "huge": (write_hostile_npy, rf"{FEATURES} is damaged: it is an array of .*10000"),
    "no array": (
        write_zeros,
        rf"{RUN} is damaged",
    ),
    "unknown run": (
        lambda f: save(f, RUN, np.full(9, 2, np.int8)),
        "it names runs that the header does not have",
    ),
    "logits": (
        lambda f: save(f, LOGITS, np.full((9, 6), np.inf, np.float32)),
        "it holds logits that are not finite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_array_is_one_line(folder: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(PredictionError, match=message) as caught:
        Features.open(folder)
    assert str(caught.value).endswith("make the features again with `ichfast features`")
    assert "\n" not in str(caught.value)


def document(**changes: Any) -> str:
    found = json.loads(HEADER_9.to_json())
    del found["crc32c"]
    return with_checksum({**found, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[1]", "expected fields"),
        ("[" * 100_000, "nested too deeply"),
        (document()[:-3], "Expecting"),
        (document().replace("first", "third"), "its checksum is wrong"),
        (document(format=2), "format 2, this ichfast reads 1"),
        (document(format="x" * 99), "has features of format 'xxx"),
        (document(more=1), "unknown setting 'more'"),
        (document(num_slices=9.5), "num_slices: expected int"),
        (document(num_slices=0), "no slices or no features"),
        (document(runs=[{"name": "a"}]), "not all of FeaturesRun"),
        (document(store=None), "store: expected str"),
        (" " * (2**22 + 1), "more than 4,194,304 bytes"),
    ],
)
def test_a_damaged_header_is_one_line(folder: Path, text: str, message: str) -> None:
    (folder / HEADER).write_text(text)
    with pytest.raises(PredictionError, match=message) as caught:
        Features.open(folder)
    assert "make the features again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", HEADER])
def test_where_there_are_no_features_the_error_says_so(folder: Path, name: str) -> None:
    with pytest.raises(PredictionError, match="run `ichfast features RUN"):
        Features.open(folder / name if name else folder.parent)


def test_a_header_that_is_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / HEADER).mkdir()
    with pytest.raises(PredictionError, match=r"damaged: .*not a regular file"):
        Features.open(tmp_path)


def test_features_of_another_store_are_refused(folder: Path, tiny_store: Store) -> None:
    features = Features.open(folder)
    with pytest.raises(
        PredictionError, match=r"features of another store than .*; make .* again"
    ):
        features.check_store(tiny_store)
    header = replace(
        HEADER_9, store_digest=tiny_store.header.digest, num_slices=len(tiny_store)
    )
    replace(features, header=header).check_store(tiny_store)
    with pytest.raises(PredictionError, match="before slices were appended"):
        replace(features, header=replace(header, num_slices=28)).check_store(tiny_store)
