"""A flipped bit of a slice ends every command that reads the slice with one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ichfast.store.store import Store
from tests.cli.test_cli import TINY, ok, refused
from tests.runs.trainedruns import write_run

CPU = ("--device", "cpu")
TRAIN = (*TINY, "--set", "folds.num_folds=2")


def flip_all(store: Path, level: int) -> None:
    """Flip the lowest bit of a pixel of every slice at a level."""
    with Store(store) as opened:
        for shard in opened.header.shards:
            _, rows, columns = shard.shape(level)
            file = store / f"level-{level}" / shard.name
            content = bytearray(file.read_bytes())
            for end in range(len(content), 4096, -2 * rows * columns):
                content[end - 2] ^= 1
            file.write_bytes(content)


@pytest.fixture(scope="module")
def place(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a damaged store, a run of it and predictions of the run."""
    path = tmp_path_factory.mktemp("place")
    store = Path(shutil.copytree(tiny_store_path, path / "store"))
    write_run(path / "run", store)
    ok("predict", path / "run", path / "predictions.csv", *CPU)
    for level in (512, 256):
        flip_all(store, level)
    return path


COMMANDS = {
    "train": ("train", "--store", "store", "--out", "new", *TRAIN),
    "train, kept": (
        *("train", "--store", "store", "--out", "kept", "--cache", "host"),
        *TRAIN,
    ),
    "train, measured": (
        *("train", "--store", "store", "--out", "measured", *TRAIN),
        *("--set", "data.normalize=data"),
    ),
    "predict": ("predict", "run", "new.csv", *CPU),
    "report": ("report", "run", "--predictions", "predictions.csv", *CPU),
    "preview": ("preview", "store", "preview.png"),
    "inspect": ("inspect", "store"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_slice_is_one_line_with_status_1(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    line = refused(*COMMANDS[name])
    assert re.fullmatch(
        r"Error: \S*store/level-\d+/\S+\.npy is damaged: row \d+ has the CRC-32C "
        r"0x[0-9a-f]{8}, expected 0x[0-9a-f]{8}; find all damage with `ichfast verify "
        r"\S*store`, mend it with `ichfast verify \S*store --repair SOURCE`, or copy "
        r"it back",
        line,
    )
    after = sorted(path.name for path in place.iterdir())
    assert [each for each in after if Path(each).suffix] == [
        each for each in before if Path(each).suffix
    ]


@pytest.mark.slow
def test_slices_are_not_compared_if_the_run_says_never(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    unchecked = ("--set", "data.check=never")
    ok("train", "--store", "store", "--out", "unchecked", *TRAIN, *unchecked)
    ok("predict", "unchecked", "unchecked.csv", *CPU)
