"""Commands, options and settings that README and docs name in a sentence exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bench.scale import main as scale
from bench.throughput import main as throughput
from ichfast.cli.main import cli
from ichfast.recipes.resolve import format_recipe
from tests.docs.pages import PAGES

SECTIONS = ("augment", "data", "folds", "model", "train")
"""Beginnings of settings."""

FILES = (".csv", ".md", ".onnx", ".parquet", ".png", ".pt2")

NO_SETTING = "augment.parameters.draw"
"""A function that begins like one."""


def inline_code(page: Path) -> list[str]:
    """What a page has in single backticks, each in one line."""
    text = re.sub(
        r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def options(*commands: click.Command) -> set[str]:
    """All options of some commands."""
    return {
        name
        for command in commands
        for each in command.params
        for name in (*each.opts, *each.secondary_opts)
    } | {"--help"}


ANY = options(*cli.commands.values(), scale, throughput)


def unknown(code: str) -> Iterator[str]:
    """Yield what a piece of code has that is no command and no option."""
    command = re.match(r"ichfast ([\w-]+)", code)
    known = ANY
    if command:
        if command[1] not in cli.commands:
            yield command[0]
            return
        known = options(cli.commands[command[1]])
    elif not code.startswith("--"):
        return  # another program's
    yield from (
        name for name in re.findall(r"(?<!\S)--[\w-]+", code) if name not in known
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    found = {code: [*unknown(code)] for code in inline_code(page)}
    assert {code: names for code, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("ichfast trein --arch x", ["ichfast trein"]),
        ("ichfast train --arc x --size 3", ["--arc"]),
        ("--no-such-option", ["--no-such-option"]),
        ("torchrun --max-restarts 3", []),
    ],
)
def test_an_unknown_one_is_found(code: str, names: list[str]) -> None:
    assert [*unknown(code)] == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist(page: Path) -> None:
    known = set(re.findall(r"^\s*([a-z_.0-9]+)", format_recipe("fast"), re.MULTILINE))
    pattern = rf"(?:--set )?((?:{'|'.join(SECTIONS)})\.[\w.]+)(?:=.*)?"
    named = {
        found[1].replace(".N.", ".0.")
        for code in inline_code(page)
        if (found := re.fullmatch(pattern, code)) and not found[1].endswith(FILES)
    }
    assert named - known - {NO_SETTING} == set()
