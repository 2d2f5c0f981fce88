"""What several commands share: options, and how a result is printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ichfast.system.terminal import printable_lines


class OutputFile(click.Path):
    """A file to write, whose name ends as what is written does.

    So that a slip of the keyboard does not replace a file of another kind.

    Args:
        suffix: such as ``.png``.
    """

    def __init__(self, suffix: str) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.suffix = suffix

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """The path, or a usage error."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != self.suffix:
            self.fail(f"expected a {self.suffix} file, found {path.name!r}", param, ctx)
        return path


def number_or(
    word: str, *, least: int
) -> Callable[[click.Context, click.Parameter, str | None], int | str | None]:
    """A callback for an option that takes a number, or one word in its place.

    Args:
        word: such as ``auto``.
        least: the smallest number.
    """

    def convert(
        _ctx: click.Context, param: click.Parameter, value: str | None
    ) -> int | str | None:
        if value is None or value == word:
            return value
        if not value.isdecimal() or int(value) < least:
            raise click.BadParameter(
                f"expected {word} or a number from {least}, found {value!r}",
                param=param,
            )
        return int(value)

    return convert


DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    help="auto takes a GPU if torch and DALI can both use it.",
)
STORE = click.option(
    "--store",
    default="ichfast-store",
    type=click.Path(path_type=Path),
    help="The store's folder.",
)
LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), help="A trial run on so many slices."
)

CACHE = click.option(
    "--cache",
    type=click.Choice(["none", "host", "device"]),
    help="Read each slice once and keep it in host or GPU memory.  [default: none]",
)


def say(text: str) -> None:
    """Show a line that is no result."""
    click.echo(printable_lines(text), err=True)


def print_result(result: Any) -> None:
    """Print a command's result: one line of JSON."""
    click.echo(json.dumps(result, default=str))
