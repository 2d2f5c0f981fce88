"""The README is true: its example runs, its map is complete, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import ichfast
from ichfast.cli.main import cli
from ichfast.export.export import export_run
from ichfast.labels import CLASSES
from tests.runs.trainedruns import write_run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
def test_the_python_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        "synth heads --slices 90 --size 64",
        "prepare heads/dicom --labels heads/labels.csv --keep-ids --workers 1",
    ):
        result = CliRunner().invoke(cli, shlex.split(command))
        assert result.exit_code == 0, result.stderr
    example, _ = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "torch.Size([32, 3, 224, 224])" in capsys.readouterr().out


@pytest.mark.slow
def test_the_export_example_runs_as_it_stands(
    tiny_store_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", tiny_store_path, arch="efficientnet-b0")
    export_run(run, Path("model.pt2"))
    _, example = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(CLASSES)


def test_the_map_lists_every_package_and_nothing_that_is_gone() -> None:
    tree = README[README.index("## Map") :].split("```")[1]
    listed = re.findall(r"^ {2}(\w+(?:/|\.py)) ", tree, flags=re.MULTILINE)
    root = Path(ichfast.__path__[0])
    packages = {f"{path.parent.name}/" for path in root.glob("*/__init__.py")}
    assert {name for name in listed if name.endswith("/")} == packages
    assert {name for name in listed if name.endswith(".py")} == {
        "errors.py",
        "windows.py",
        "labels.py",
    }


def test_every_command_of_the_readme_parses() -> None:
    typed = [
        shlex.split(line)
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("ichfast ")
    ]
    assert len(typed) >= 8
    for _, name, *arguments in typed:
        command = cli.commands[name]
        known = {option for each in command.params for option in each.opts}
        given = {part for part in arguments if part.startswith("--")}
        assert given <= known, f"ichfast {name} has no {given - known}"
