"""Predictions that ichfast did not write: wrong ones are refused by every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_cli import run
from tests.evaluation.foreign_tables import Write, wrong_files

WRONG = wrong_files()


def test_there_are_200_wrong_files() -> None:
    assert len(WRONG) >= 200


@pytest.mark.parametrize(("suffix", "write"), WRONG.values(), ids=WRONG)
def test_a_wrong_table_is_one_line_in_every_command(
    suffix: str, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / f"p{suffix}"
    write(path)
    for arguments in (
        ("evaluate", path),
        ("submit", path, tmp_path / "submission.csv"),
        ("report", tmp_path / "run", "--predictions", path, "--device", "cpu"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, (result.output, result.exception)
        assert result.stdout == ""
        warning, *lines = result.stderr.strip().splitlines()
        assert warning == f"{path} has no p{suffix}.sha256 beside it: not checked"
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"Error: {path} ")
        assert len(lines[0]) < len(str(path)) + 400
    assert list(tmp_path.iterdir()) == [path]
