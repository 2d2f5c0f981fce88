"""`train` on a full disk or in a read-only folder: one line, whichever file it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.forked import Outcome, Server
from tests.cli.test_full_disk import mounted
from tests.conftest import contents

TRAIN = (
    *("train", "--arch", "tiny", "--size", "32", "--device", "cpu"),
    *("--set", "train.epochs=1", "--set", "data.batch_size=8"),
    *("--set", "folds.num_folds=2", "--out", "disk/run", "--store"),
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder to mount a disk at; the run's folder is in it."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


def check_refused(outcome: Outcome, disk: Path, reason: str) -> None:
    assert outcome.status == 1, outcome.output
    assert "Traceback" not in outcome.output
    start, *words = outcome.error.split(f": {reason}; ")
    assert start.startswith(
        ("Error: cannot write disk/run/", "Error: cannot write the")
    )
    assert len(words) == 1
    assert not list(disk.rglob("*.tmp"))
    has_last = any(path.name.startswith("last.") for path in disk.rglob("*.pt"))
    assert ("--resume" in words[0]) == has_last


# KiB: run.json, tensorboard's file, metrics.csv and its checksum, last.pt, best.pt.
@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 8, 20, 24, 28, 40, 2_500])
def test_a_disk_that_becomes_full_is_one_line(
    size: int, disk: Path, server: Server, tiny_store_path: Path
) -> None:
    tmpfs = ("mount", "-t", "tmpfs", "-o", f"size={size}k", "none")
    with mounted(disk, tmpfs):
        outcome = server.run(disk.parent, *TRAIN, tiny_store_path)
        check_refused(outcome, disk, "No space left on device")


@pytest.mark.slow
def test_a_checkpoint_that_is_too_large_is_one_line_and_the_run_can_start_again(
    disk: Path, server: Server, tiny_store_path: Path
) -> None:
    outcome = server.run(disk.parent, *TRAIN, tiny_store_path, max_bytes=10**6)
    check_refused(outcome, disk, "File too large")
    again = server.run(disk.parent, *TRAIN, tiny_store_path)
    assert again.status == 0, again.output
    assert {"best.pt", "last.pt"} <= {path.name for path in (disk / "run").iterdir()}


@pytest.mark.slow
def test_a_read_only_folder_is_one_line(
    disk: Path, server: Server, tiny_store_path: Path
) -> None:
    bind = ("mount", "--bind", str(disk))
    with mounted(disk, bind, ("mount", "-o", "remount,ro,bind")):
        outcome = server.run(disk.parent, *TRAIN, tiny_store_path)
    check_refused(outcome, disk, "Read-only file system")
    assert contents(disk) == {}
