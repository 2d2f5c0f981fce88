"""What several commands share: options, and how a result is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

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
    click.echo(text, err=True)


def print_result(result: Any) -> None:
    """Print a command's result: one line of JSON."""
    click.echo(json.dumps(result, default=str))
