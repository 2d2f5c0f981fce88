"""Progress goes to stderr: plain lines where no terminal is."""

from __future__ import annotations

import pytest

from ichfast.progress import progress


def test_without_a_terminal_progress_is_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("prepare", 7, "file") as bar:
        bar.update(3)
        bar.set_postfix_str("1 rejected")
        bar.update(4)
    captured = capsys.readouterr()
    assert captured.out == ""
    first, *_, last = captured.err.splitlines()
    assert first.startswith("prepare: 0 of 7 files, ")
    assert last.startswith("prepare: 7 of 7 files, ")
    assert last.endswith("left, 1 rejected")
    assert "\r" not in captured.err


def test_without_a_label_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("", 2, "slice") as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")
