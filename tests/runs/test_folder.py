"""The record of a run is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ichfast.errors import RecipeError
from ichfast.runs.folder import RECORD, read_record


@pytest.mark.parametrize("text", ["[" * 10**5, '{"store": "\\ud800"}', "[]"])
def test_a_record_that_means_harm_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(RecipeError, match="is damaged"):
        read_record(tmp_path)


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(RecipeError, match="not a regular file"):
        read_record(tmp_path)
