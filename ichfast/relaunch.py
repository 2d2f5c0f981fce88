"""The command that continues what this process was doing, to copy and paste."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path


def resume_command(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Write out the command line of a run once more, with ``--resume``.

    Args:
        argv: as `sys.argv`.
        environ: as `os.environ`; tells whether torchrun started this process.

    Example:
        >>> resume_command(["/usr/bin/ichfast", "train", "--out", "my run"], {})
        "ichfast train --out 'my run' --resume"
    """
    program, *arguments = argv
    if "--resume" not in arguments:
        arguments.append("--resume")
    return shlex.join([*_launcher(Path(program), environ), *arguments])


def _launcher(program: Path, environ: Mapping[str, str]) -> list[str]:
    if "TORCHELASTIC_RUN_ID" not in environ:
        is_module = program.name == "__main__.py"
        return ["python", "-m", "ichfast"] if is_module else [program.name]
    launcher = ["torchrun", "--nproc-per-node", environ["LOCAL_WORLD_SIZE"]]
    num_nodes = int(environ["GROUP_WORLD_SIZE"])
    if num_nodes > 1:
        launcher += ["--nnodes", str(num_nodes), "--node-rank", environ["GROUP_RANK"]]
        launcher += ["--master-addr", environ["MASTER_ADDR"]]
        launcher += ["--master-port", environ["MASTER_PORT"]]
    return [*launcher, "-m", "ichfast"]
