"""Every stage of ichfast against its limit and its peers, in one command.

    python bench/throughput.py [STAGE ...] [--store DIR] [--peers all|none|NAMES]

Without arguments it measures all stages in about five minutes on two cores, on
synthetic slices that it makes once and keeps in a cache folder. A table goes to stdout,
and one JSON line after it; progress and warnings go to stderr.

The imports at the top are light, because worker processes import this file again.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    # Python put the folder of this file here, where `import bench` would fail.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click

from bench.stages import STAGES
from ichfast.errors import IchfastError


@click.command(context_settings={"show_default": True})
@click.argument("stages", nargs=-1, metavar="[STAGE]...")
@click.option("--stage", "more_stages", multiple=True, help="The same as STAGE.")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Measure on this store; prepare still uses synthetic files.",
)
@click.option("--arch", "archs", multiple=True, help="Backbone; may be repeated.")
@click.option("--size", type=click.IntRange(min=32), help="Input side, pixels.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Slices in a batch.")
@click.option("--device", default="auto", type=click.Choice(["auto", "cuda", "cpu"]))
@click.option(
    "--peers",
    default="all",
    is_flag=False,
    flag_value="all",
    help="all, none, or names with commas; without a value, all.",
)
@click.option(
    "--full",
    is_flag=True,
    help="All backbones at 224 and 512, 1 to 8 ranks: ~20 minutes on two cores.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for records and picture; bench/results holds those that are "
    "committed, for `python bench/readme.py`. Without it, one in the cache folder.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all records to this file, as one JSON document.",
)
def main(*, stages: Sequence[str], more_stages: Sequence[str], **options: Any) -> None:
    """Measure stages of ichfast against their limits and their peers.

    Stages: prepare, read, loader, packed, train, end_to_end, series, scale. The default
    is all.
    """
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s %(message)s")
    try:
        chosen = _check_stages([*stages, *more_stages])
        from bench.harness.session import run_session

        click.echo(json.dumps(run_session(chosen, **options)))
    except IchfastError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error


def _check_stages(names: Sequence[str]) -> tuple[str, ...]:
    """Put the named stages in order; all stages if none is named."""
    for name in names:
        if name not in STAGES:
            raise IchfastError(
                f"unknown stage {name!r}; choose from {', '.join(STAGES)}, or name no "
                "stage for all of them"
            )
    return tuple(stage for stage in STAGES if stage in names or not names)


def interrupt_once(*_: object) -> NoReturn:
    """End the run as Ctrl-C does; ignore more signals, so that it writes its records.

    `timeout` sends its signal to the process and then to the group of the process.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    # So that a terminated run removes its files too.
    signal.signal(signal.SIGTERM, interrupt_once)
    main()
