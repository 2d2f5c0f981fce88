"""Progress goes to stderr, as plain lines without a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import sys
import termios
import time

import pytest

from ichfast.system.terminal import progress


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


def test_the_rate_is_in_bytes_too_where_their_size_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress("prepare", 7, "file", unit_bytes=5e11) as bar:
        time.sleep(0.01)
        bar.update(7)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert ", 0.0 MB/s, " in first
    rate, mb_per_s = re.search(r", (\S+) file/s, (\S+) MB/s, ", last).groups()  # type: ignore[union-attr]
    assert float(mb_per_s) == pytest.approx(float(rate) * 5e5, rel=0.01)


@pytest.mark.parametrize("rows_and_columns", [(24, 130), (0, 0), (0, 110)])
def test_on_a_terminal_progress_is_a_bar_with_rates_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, rows_and_columns: tuple[int, int]
) -> None:
    reader, terminal = os.openpty()
    fcntl.ioctl(
        terminal, termios.TIOCSWINSZ, struct.pack("4H", *rows_and_columns, 0, 0)
    )
    with os.fdopen(reader, "rb", buffering=0), os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress("prepare", 8, "file", unit_bytes=5e5) as bar:
            bar.set_postfix_str("1 rejected", refresh=False)
            time.sleep(0.25)
            bar.update(6)
            bar.update(2)
        text = b""
        while b" 8/8 " not in text and select.select([reader], [], [], 10)[0]:
            text += os.read(reader, 10_000)
    shown = text.decode().split("\r")
    assert all(len(state) <= 130 for state in shown)
    states = [re.sub(r"\d+\.\d+", "#", state) for state in shown]
    [most] = [state for state in states if " 6/8 " in state]
    assert most.startswith("prepare:  75%|")
    assert re.search(r" \[00:0\d<00:0\d, +# file/s, # MB/s, 1 rejected\]", most)


def test_without_a_label_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("", 2, "slice") as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")
