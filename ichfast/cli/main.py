"""The `ichfast` program: the list of its commands, its log, and its errors.

1. A command parses its arguments, calls the library, and prints; no more.
2. The result goes to stdout as one line of JSON. Messages go to stderr.
3. An error of ours is one line and status 1; `--debug` shows the traceback.
4. A library that a command does not need is not loaded, so commands import inside
   their functions (`tests/cli/test_imports.py`).
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from ichfast.cli import calibrate, demo, doctor, evaluate, predict, series, store, train
from ichfast.errors import IchfastError
from ichfast.system.terminal import printable_lines

_NOISY = (
    *("matplotlib", "PIL", "urllib3", "httpx"),
    *("fsspec", "s3fs", "botocore", "aiobotocore", "distributed"),
    *("onnxscript", "onnx_ir"),
)
"""Libraries whose log lines below a warning are hidden."""


class _Commands(click.Group):
    """A group of commands that turns our errors into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except IchfastError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(printable_lines(str(error))) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)  # in the order of use, not of the alphabet


@click.group(
    cls=_Commands,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show tracebacks and the whole log.")
@click.version_option(package_name="ichfast")
def cli(debug: bool) -> None:
    """Train intracranial-hemorrhage detectors on head CT, fast.

    \b
    From DICOM files to a submission:
      ichfast prepare DICOM... --labels stage_2_train.csv --keep-ids
      ichfast train --arch xresnet50-attn --size 512
      ichfast predict runs/fast-xresnet50-attn-512 predictions.parquet --tta
      ichfast evaluate predictions.parquet
      ichfast submit predictions.parquet submission.csv

    `ichfast demo` does all of this on synthetic heads, in minutes. `ichfast doctor`
    shows what this machine has; type it first on a machine with a GPU.
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
        force=True,
    )
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


for _command in (
    doctor.doctor,
    *(store.prepare, store.inspect, train.preview, train.train),
    *(series.features, series.train_series),
    *(predict.predict, evaluate.evaluate, calibrate.calibrate),
    *(predict.blend, evaluate.submit),
    *(evaluate.report, evaluate.compare, predict.export),
    *(store.verify, store.pack, store.unpack),
    *(store.synth, demo.demo, train.recipes),
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line."""
    try:
        cli()
    except KeyboardInterrupt:  # before click catches it
        raise SystemExit("Aborted!") from None
