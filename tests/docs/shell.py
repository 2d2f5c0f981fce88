"""Blocks of shell commands, run by bash with programs that note how they are called.

So bash itself reads comments, quotes, variables and continued lines. What it would have
run is then run in this process, made small.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

from click.testing import CliRunner
from torch.distributed.run import get_args_parser

from ichfast.cli.main import cli
from tests.conftest import TINY_ARCH
from tests.docs.pages import ROOT

NOTE = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >> "$CALLS"
printf '\\n' >> "$CALLS"
"""

PROGRAMS = {
    **dict.fromkeys(("ichfast", "make", "python", "torchrun"), NOTE),
    "scontrol": "#!/bin/bash\necho node1\necho node2\n",
    "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n',
}

SLURM = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}

SMALL = {
    "train": (
        *("--arch", TINY_ARCH, "--size", "32", "--limit", "48", "--device", "cpu"),
        *("--set", "model.pretrained=no", "--set", "data.batch_size=16"),
    ),
    "train-series": ("--set", "series.epochs=1", "--set", "series.min_steps=1"),
}
"""Options behind each of these commands: the last of an option counts."""

ELSEWHERE = {"doctor": "tests/doctor/test_command.py"}
"""Commands that are slow and the same on every page, and what runs them."""


def calls(text: str, folder: Path) -> list[list[str]]:
    """The programs that a block of commands calls, with their arguments.

    Args:
        text: the block.
        folder: to run it in.
    """
    bin_dir, notes = folder / ".bin", folder / ".calls"
    bin_dir.mkdir(exist_ok=True)
    for name, script in PROGRAMS.items():
        (bin_dir / name).write_text(script, "utf-8")
        (bin_dir / name).chmod(stat.S_IRWXU)
    notes.write_text("", "utf-8")
    done = subprocess.run(
        ["bash", "-eu", "-c", text],
        cwd=folder,
        env={"PATH": f"{bin_dir}{os.pathsep}/usr/bin:/bin", "CALLS": str(notes)}
        | SLURM,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = notes.read_text("utf-8").splitlines()
    return [line.split("\0")[:-1] for line in lines]


def run_call(program: str, *arguments: str) -> str:
    """Run a call, or check that it could run.

    Args:
        program: its name.
        *arguments: what it was called with.

    Returns:
        What it printed, if it is a command of ichfast.
    """
    if program == "ichfast":
        return _run_ichfast(*arguments)
    if program == "torchrun":
        options = get_args_parser().parse_args(arguments)
        assert (options.module, options.training_script) == (True, "ichfast")
        return _run_ichfast(*options.training_script_args)
    if program == "make":
        for target in arguments:
            makefile = (ROOT / "Makefile").read_text("utf-8")
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    else:
        _check_installation(*arguments)
    return ""


def _run_ichfast(name: str, *arguments: str) -> str:
    if name in ELSEWHERE:
        assert (ROOT / ELSEWHERE[name]).is_file()
        return ""
    result = CliRunner().invoke(cli, [name, *arguments, *SMALL.get(name, ())])
    assert result.exit_code == 0, f"{name} {arguments}\n{result.output}"
    return result.stdout


def _check_installation(*arguments: str) -> None:
    *command, what = arguments
    assert command == ["-m", "pip", "install"]
    extras = re.fullmatch(r"\.\[([\w,]+)\]", what)
    assert extras, what
    setup = (ROOT / "setup.py").read_text("utf-8")
    for extra in extras[1].split(","):
        assert f'"{extra}": ' in setup, f"no extra {extra}"
