"""Locks are held while a process lives, and no longer."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
from pathlib import Path

import pytest

from ichfast.system.locks import (
    LOCK_FILE,
    MARK,
    LockHeldError,
    locked_file,
    locked_folder,
    remove_abandoned,
    temporary_folder,
)
from tests.system.killed_process import held_elsewhere


def test_a_folder_is_locked_until_its_process_dies(tmp_path: Path) -> None:
    with held_elsewhere("locked_folder", tmp_path) as process:
        with pytest.raises(LockHeldError) as caught, locked_folder(tmp_path):
            pass
        expected = f"process {process.pid} on {socket.gethostname()}"
        assert caught.value.holder == expected
    with locked_folder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    assert (tmp_path / LOCK_FILE).read_text() == MARK


def test_an_error_releases_the_lock_and_its_text(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked_folder(tmp_path):
        raise ZeroDivisionError
    assert (tmp_path / LOCK_FILE).read_text() == MARK
    with locked_folder(tmp_path):
        pass


def test_a_lock_whose_file_was_removed_counts_as_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its process removes the file, releases the lock, and another makes a new file.
    def remove_and_lock(_descriptor: int, _how: int) -> None:
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).touch()

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with pytest.raises(LockHeldError), locked_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_folder(tmp_path), locked_file(tmp_path / "a"):
        assert "cannot be locked (No locks available)" in caplog.text
        assert "start only one" in caplog.text
        remove_abandoned(tmp_path / "a")
        assert (tmp_path / "a").exists()


def test_a_file_is_removed_only_when_its_process_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with held_elsewhere("locked_file", path):
        remove_abandoned(path)
        assert path.exists()
    remove_abandoned(path)
    assert not path.exists()
    remove_abandoned(path)


def test_a_file_that_is_taken_for_abandoned_as_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, path = fcntl.flock, tmp_path / "a"

    def remove_and_lock(descriptor: int, how: int) -> None:
        monkeypatch.undo()
        path.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with locked_file(path):
        assert path.exists()


def test_temporary_folders_of_dead_processes_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, alive, fresh, other = (tmp_path / f"ours-{k}" for k in range(4))
    for folder in (dead, alive, fresh, other):
        folder.mkdir()
        (folder / "patients").touch()
    (fresh / LOCK_FILE).touch()  # not locked yet
    (other / LOCK_FILE).write_text("a file of another program")
    (tmp_path / "ours-link").symlink_to(other)
    with held_elsewhere("locked_folder", dead):
        pass
    with held_elsewhere("locked_folder", alive), temporary_folder("ours-") as made:
        assert not dead.exists()
        assert all(folder.exists() for folder in (alive, fresh, other))
        assert made.stat().st_mode & 0o777 == 0o700
        assert made.parent == tmp_path
    assert not made.exists()
