"""The journal keeps what is done of a prediction, and nothing that is damaged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from ichfast.errors import PredictionError
from ichfast.predict import journal as journal_module
from ichfast.predict.journal import (
    MAX_PART_SLICES,
    PLAN,
    Journal,
    Part,
    Rows,
    Task,
    journal_folder,
    open_journal,
)
from ichfast.system.ranks import Ranks

TASKS = (
    Task(num_slices=7, num_passes=2, batch_size=3, num_features=0),
    Task(num_slices=4, num_passes=1, batch_size=4, num_features=5),
)
SETTINGS = {"store": "a", "tta": "flips", "slices": [[7, 1], [4, 2]]}


class DiskFailure(Exception):  # noqa: N818 - stands for any error
    """An error while parts are computed."""


def opened(
    folder: Path, tasks: Sequence[Task] = TASKS, **changes: str
) -> AbstractContextManager[Journal]:
    return open_journal(folder, SETTINGS | changes, lambda: tasks, Ranks())


@contextmanager
def failing(folder: Path, **changes: str) -> Iterator[Journal]:
    with suppress(DiskFailure), opened(folder, TASKS, **changes) as journal:
        yield journal
        raise DiskFailure


def random_rows(journal: Journal, part: Part) -> Rows:
    rng = np.random.default_rng(list(part))
    rows_R = np.empty(len(journal.rows(part)), journal.tasks[part.task].dtype)
    for name in ("logits", "features"):
        rows_R[name] = rng.normal(size=rows_R[name].shape)
    return rows_R


def write_some(journal: Journal, count: int) -> list[Part]:
    chosen = journal.parts[:count]
    for part in chosen:
        journal.write(part, random_rows(journal, part))
    return chosen


@pytest.mark.parametrize("num_slices", [1, 63, 64 * 8 + 5, 752_803])
def test_parts_are_whole_batches_and_have_each_row_once(num_slices: int) -> None:
    task = Task(num_slices=num_slices, num_passes=1, batch_size=8, num_features=0)
    journal = Journal(Path(), [task])
    rows = np.concatenate([journal.rows(part) for part in journal.parts])
    np.testing.assert_array_equal(rows, np.arange(num_slices))
    assert task.part_slices % 8 == 0
    assert task.part_slices <= MAX_PART_SLICES
    assert len(journal.parts) >= min(64, -(-num_slices // 8))


def test_rows_are_read_across_parts(tmp_path: Path) -> None:
    with opened(tmp_path / "work") as journal:
        write_some(journal, len(journal.parts))
        pieces = [
            random_rows(journal, part)
            for part in journal.parts
            if (part.task, part.pass_number) == (0, 1)
        ]
        whole_R = np.concatenate(pieces)
        assert len(pieces) == 3
        np.testing.assert_array_equal(journal.read(0, 1), whole_R)
        np.testing.assert_array_equal(journal.read(0, 1, 2, 7), whole_R[2:7])
        np.testing.assert_array_equal(journal.read(0, 1, 3, 6), whole_R[3:6])
        assert journal.read(1, 0)["features"].shape == (4, 5)
    assert list(tmp_path.iterdir()) == []


def test_after_an_error_it_goes_on_where_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = journal_folder(tmp_path / "p.csv")
    assert folder.name == ".p.csv.work"
    with failing(folder) as journal:
        written = write_some(journal, 3)
    with opened(folder, ()) as journal:
        assert journal.tasks == TASKS  # as begun, not as measured now
        assert sorted(journal.found) == written
    assert "3 of 7 parts are done" in caplog.text
    assert not folder.exists()


def test_an_error_before_the_first_part_leaves_nothing(tmp_path: Path) -> None:
    with failing(tmp_path / "work"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "swap"])
def test_a_damaged_part_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with failing(tmp_path / "work") as journal:
        first, second, *_ = write_some(journal, 3)
    path = journal.folder / first.file_name
    content = bytearray(path.read_bytes())
    content[5] ^= damage == "flip"
    path.write_bytes(content[: -1 if damage == "cut" else None])
    if damage == "swap":
        path.write_bytes((journal.folder / second.file_name).read_bytes())
    with failing(tmp_path / "work") as journal:
        assert first not in journal.found
        assert second in journal.found
        assert not path.exists()
    assert f"{first.file_name} is computed again" in caplog.text


def test_a_part_that_is_damaged_later_is_refused(tmp_path: Path) -> None:
    with failing(tmp_path / "work") as journal:
        write_some(journal, 7)
        (journal.folder / "0-0-00001.part").write_bytes(b"")
        with pytest.raises(PredictionError, match=r"00001\.part was damaged since"):
            journal.read(0, 0)


def test_other_settings_are_refused_while_a_part_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with failing(folder) as journal:
        write_some(journal, 1)
    wanted = r"has parts of another .*, with other store, tta; .* remove the folder"
    with (
        pytest.raises(PredictionError, match=wanted),
        opened(folder, tta="none", store="b"),
    ):
        pass
    assert (folder / "0-0-00000.part").exists()
    (folder / "0-0-00000.part").unlink()
    with failing(folder, tta="none") as journal:
        assert json.loads((folder / PLAN).read_text())["settings"]["tta"] == "none"


def test_a_damaged_plan_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "work"
    with failing(folder) as journal:
        write_some(journal, 2)
    plan = (folder / PLAN).read_text()
    (folder / PLAN).write_text(plan.replace('"batch_size": 3', '"batch_size": 2'))
    with opened(folder) as journal:
        assert not journal.found
        assert journal.tasks == TASKS
    assert "is begun anew: its plan was damaged" in caplog.text


def test_files_of_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    wanted = r"mine\.txt is not a file of ichfast; move it away"
    with pytest.raises(PredictionError, match=wanted), opened(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    wanted = r"process \d+ on .* works in .*work; wait until it ends"
    with (
        opened(tmp_path / "work"),
        pytest.raises(PredictionError, match=wanted),
        opened(tmp_path / "work"),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = "cannot write .*work: .*; make room, then the same command goes on"
    with pytest.raises(PredictionError, match=wanted), opened(tmp_path / "file/work"):
        pass


def test_a_wait_for_other_ranks_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "STALLED_S", 0.02)
    monkeypatch.setattr(journal_module, "POLL_S", 0.01)
    with failing(tmp_path / "work") as journal:
        *_, last = write_some(journal, 7)
        journal.wait(lambda: None)
        (journal.folder / last.file_name).unlink()
        wanted = r"no part of another rank came to .* 1 of 7 are missing: a rank has"
        with pytest.raises(PredictionError, match=wanted):
            journal.wait(lambda: None)


def test_a_rank_that_does_not_see_the_folder_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "VISIBLE_S", 0.02)
    monkeypatch.setattr(journal_module, "POLL_S", 0.01)
    monkeypatch.setattr(Ranks, "gather", lambda _ranks, _value: [(TASKS, ())])
    wanted = r"rank 1 does not see .*work, .* in a folder that all machines share"
    with (
        pytest.raises(PredictionError, match=wanted),
        open_journal(tmp_path / "work", SETTINGS, lambda: TASKS, Ranks(1, 2)),
    ):
        pass
