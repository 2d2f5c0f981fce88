"""The `ichfast` command: its commands, how it logs, and how an error looks.

A command parses, calls one library function, prints; no more. Results go to stdout
as one JSON line; progress and warnings go to stderr.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from ichfast.cli import predict, store, train
from ichfast.cli.options import DEVICE, print_result, say
from ichfast.errors import IchfastError
from ichfast.system.terminal import printable_lines

_NOISY = (
    *("matplotlib", "PIL", "urllib3", "httpx"),
    *("fsspec", "s3fs", "botocore", "aiobotocore", "distributed"),
    *("onnxscript", "onnx_ir"),
)
"""Packages whose log lines below a warning are not for a user."""


class _Commands(click.Group):
    """Turns our own errors into a one-line message and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IchfastError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(printable_lines(str(error))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)  # in the order one uses them, not the alphabet's


@click.group(
    cls=_Commands,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="ichfast")
def cli(debug: bool) -> None:
    """Train intracranial-hemorrhage detectors on head CT, fast.

    \b
    The way from DICOM to a submission:
      ichfast prepare DICOM... --labels stage_2_train.csv --keep-ids
      ichfast train --arch xresnet50-attn --size 512
      ichfast predict runs/fast-xresnet50-attn-512 predictions.parquet --tta
      ichfast evaluate predictions.parquet
      ichfast submit predictions.parquet submission.csv

    `ichfast demo` walks all of it on synthetic heads, in minutes.
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
        force=True,
    )
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


@click.command()
@click.option(
    "--out",
    default="ichfast-demo",
    type=click.Path(path_type=Path),
    help="A folder to make everything in; must not exist.",
)
@DEVICE
def demo(out: Path, device: str) -> None:
    """Walk the whole way on synthetic heads: synth to report, in minutes."""
    from ichfast.cli.demo import run_demo
    from ichfast.runs.device import choose_device

    print_result(run_demo(out, device=choose_device(device), say=say))


for _command in (
    *(store.prepare, store.inspect, train.preview, train.train),
    *(predict.predict, predict.evaluate, predict.submit, predict.report),
    *(predict.compare, predict.export, store.verify, store.synth, demo),
    train.recipes,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    cli()
