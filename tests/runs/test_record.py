"""The record of a run is untrusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ichfast.errors import RecipeError
from ichfast.runs.record import RECORD, read_record


@pytest.mark.parametrize("text", ["[" * 10**5, '{"store": "\\ud800"}', "[]"])
def test_a_hostile_record_counts_as_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(RecipeError, match="is damaged"):
        read_record(tmp_path)


def test_a_named_pipe_instead_of_a_record_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(RecipeError, match="not a regular file"):
        read_record(tmp_path)
