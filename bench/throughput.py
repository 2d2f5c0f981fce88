"""Every stage of ichfast against its limit and its peers, in one command.

    python bench/throughput.py [STAGE ...] [--store DIR] [--peers all|none|NAMES]

Without arguments it makes (once) or reuses a synthetic set in a cache folder and
measures all stages, in under five minutes on two cores. A table goes to stdout,
and one JSON line, last; progress and warnings go to stderr.

Nothing heavy is imported at the top: worker processes import this file again.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The folder of this file would make `import bench` fail.
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
    help="Measure on this store; prepare goes on using synthetic files.",
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
    "--record",
    is_flag=True,
    help="Write to bench/results/, to be committed; `python bench/readme.py` shows it.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write all records there, as one JSON document.",
)
def main(*, stages: Sequence[str], more_stages: Sequence[str], **options: Any) -> None:
    """Measure every stage of ichfast against its limit and its peers.

    Stages: prepare, read, loader, train, end_to_end, scale. All without STAGE.
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
    """The chosen stages in their order; all if none is named."""
    for name in names:
        if name not in STAGES:
            raise IchfastError(
                f"unknown stage {name!r}; choose of {', '.join(STAGES)}, or all by none"
            )
    return tuple(stage for stage in STAGES if stage in names or not names)


if __name__ == "__main__":
    # A terminated run, too, removes what it wrote.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
