"""Smoke test of an installed ichfast, in the current folder: `make smoke`.

It loads every public name, and goes from synthetic DICOM files to figures.
It needs no test package, so it also runs in a new environment.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from pathlib import Path

import ichfast
from ichfast.cli.main import cli

TINY = (
    *("--arch", "efficientnet-b0", "--size", "32", "--device", "cpu"),
    *("--set", "train.epochs=1", "--set", "data.batch_size=8"),
    *("--set", "folds.num_folds=2", "--set", "model.pretrained=no"),
)

COMMANDS = (
    ("synth", "heads", "--slices", "80", "--size", "64"),
    (
        *("prepare", "heads/dicom", "--labels", "heads/labels.csv"),
        *("--workers", "1", "--keep-ids"),
    ),
    ("train", "--out", "run", *TINY),
    ("predict", "run", "predictions.csv", "--device", "cpu"),
    ("evaluate", "predictions.csv", "--bootstrap", "0"),
    ("report", "run", "--predictions", "predictions.csv", "--device", "cpu"),
)


def load_public_names() -> int:
    """Load each public name of ichfast and its packages; returns their number."""
    found = pkgutil.iter_modules(ichfast.__path__, "ichfast.")
    names = ["ichfast", *(each.name for each in found if each.ispkg)]
    public = [
        getattr(package, name)
        for package in map(importlib.import_module, names)
        for name in getattr(package, "__all__", ())
    ]
    return len(public)


def main() -> None:
    """Load the public names and run the commands; an exception ends it."""
    num_names = load_public_names()
    for command in COMMANDS:
        cli(command, standalone_mode=False)
    figures = json.loads(Path("metrics.json").read_text("utf-8"))
    print(  # noqa: T201
        f"passed: ichfast {ichfast.__version__} in {Path(ichfast.__file__).parent}, "
        f"Python {sys.version.split()[0]}, {num_names} public names, "
        f"{figures['slice']['count']} slices evaluated"
    )


if __name__ == "__main__":
    main()
