"""Options that several commands share, and how a command prints its result."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ichfast.errors import InterruptionError
from ichfast.system.signals import signals_interrupt
from ichfast.system.terminal import printable_lines

if TYPE_CHECKING:
    from ichfast.system.ranks import Ranks


class OutputFile(click.Path):
    """A file to write, whose name must have the right suffix.

    A typing error then cannot replace a file of another kind.

    Args:
        suffix: with its dot, such as ``.png``.
    """

    def __init__(self, suffix: str) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.suffix = suffix

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path; a wrong suffix is a usage error."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() != self.suffix:
            self.fail(f"expected a {self.suffix} file, found {path.name!r}", param, ctx)
        return path


def number_or(
    word: str, *, minimum: int
) -> Callable[[click.Context, click.Parameter, str | None], int | str | None]:
    """Make a callback for an option that takes a whole number or one word.

    Args:
        word: the word, such as ``auto``.
        minimum: the smallest number.
    """

    def convert(
        _ctx: click.Context, param: click.Parameter, value: str | None
    ) -> int | str | None:
        if value is None or value == word:
            return value
        if not value.isdecimal() or int(value) < minimum:
            raise click.BadParameter(
                f"expected {word} or a number from {minimum}, found {value!r}",
                param=param,
            )
        return int(value)

    return convert


RUNS = click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path)
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    help="auto takes a GPU if both torch and DALI can use it.",
)
STORE = click.option(
    "--store",
    default="ichfast-store",
    type=click.Path(path_type=Path),
    help="The store's folder.",
)
BATCH_SIZE = click.option(
    "--batch-size",
    metavar="auto|N",
    callback=number_or("auto", minimum=1),
    default="auto",
    help="Slices at a time. auto: as many as fit on the GPU; the recipe's on a CPU.",
)
STUDIES = click.option(
    "--studies",
    type=Path,  # click's own type would look at the file, which may block
    metavar="FILE",
    help="The studies to ask a DICOMweb server in SOURCE for: a text file with a "
    "StudyInstanceUID in each line.",
)
LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), help="Try it out on this many slices."
)

ACCEPT = click.option(
    "--accept",
    default="",
    metavar="CODE,...",
    callback=lambda _ctx, _param, text: [code for code in text.split(",") if code],
    help="Take images that are rejected as derived, localizer, not-axial, not-ct or "
    "not-hu all the same.",
)

ONLY = click.option(
    "--only",
    type=click.Path(path_type=Path),  # a run that resumes has a copy
    metavar="FILE",
    help="Take only the slices, series, studies or patients in this list, a csv or an "
    "id in each line.",
)

CACHE = click.option(
    "--cache",
    type=click.Choice(["none", "host", "device"]),
    help="Keep slices in host or GPU memory after the first read; those of a packed "
    "store stay packed, in about a quarter of the memory.  [default: none]",
)


def with_studies(sources: Sequence[str], studies: Path | None) -> Sequence[str]:
    """The sources; of DICOMweb servers among them the studies in a list.

    Args:
        sources: as the user gave them.
        studies: the file of `STUDIES`.
    """
    if studies is None:
        return sources
    from ichfast.sources.dicomweb import name_studies

    return name_studies(sources, studies)


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the other ranks of a command that goes on when it is typed again.

    Only the first rank prints more than errors.

    Args:
        device: as `DEVICE` takes it.

    Raises:
        InterruptionError: Ctrl-C, SIGTERM or SIGHUP.
    """
    from ichfast.system.ranks import join_ranks  # loads torch

    try:
        with (
            signals_interrupt(),
            join_ranks(device, advice="the same command goes on") as ranks,
        ):
            if not ranks.writes:
                logging.getLogger().setLevel(logging.ERROR)
            yield ranks
    except KeyboardInterrupt as error:
        raise InterruptionError(
            "stopped; the same command goes on where it was"
        ) from error


def print_status(text: str) -> None:
    """Print a message for people, on stderr."""
    click.echo(printable_lines(text), err=True)


def print_result(result: Any) -> None:
    """Print a command's result on stdout, as one line of JSON."""
    click.echo(json.dumps(result, default=str))
