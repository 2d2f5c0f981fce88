"""`ichfast train` as torchrun starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ichfast.cli.train import resume_command
from ichfast.training.history import read_history

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_torchrun_trains_on_two_ranks_and_survives_the_death_of_one(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "--max-restarts", "1",
        ROOT / "tests" / "runs" / "one_rank_dies.py",
        "train", "--store", tiny_store_path, "--out", run_dir, "--device", "cpu",
        "--arch", "efficientnet-b0", "--size", "32", "--set", "train.epochs=2",
        "--set", "data.batch_size=2", "--set", "folds.num_folds=2",
        "--set", "train.checkpoint_minutes=0",
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # only one rank writes
    report = json.loads(line)
    history = read_history(run_dir)
    assert history["epoch"].tolist() == [0, 1]
    assert np.isfinite(report["valid_loss"])
    # After the restart it continued, instead of training the first epoch again.
    assert done.stderr.count("epoch 1: train loss") == 1
    assert "lost another rank" in done.stderr


@pytest.mark.parametrize(
    ("argv", "environ", "command"),
    [
        (["/bin/ichfast", "train"], {}, "ichfast train --resume"),
        (["ichfast", "train", "--resume"], {}, "ichfast train --resume"),
        (
            ["/lib/ichfast/__main__.py", "train", "--out", "my run"],
            {},
            "python -m ichfast train --out 'my run' --resume",
        ),
        (
            ["/lib/ichfast/__main__.py", "train"],
            {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "8",
             "GROUP_WORLD_SIZE": "1"},
            "torchrun --nproc-per-node 8 -m ichfast train --resume",
        ),
        (
            ["/lib/ichfast/__main__.py", "train"],
            {"TORCHELASTIC_RUN_ID": "4711", "LOCAL_WORLD_SIZE": "8",
             "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "0",
             "MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
            (
                "torchrun --nproc-per-node 8 --nnodes 2 --node-rank 0 "
                "--master-addr node1 --master-port 29500 -m ichfast train --resume"
            ),
        ),
    ],
)  # fmt: skip
def test_the_command_to_resume_is_complete(
    argv: list[str], environ: dict[str, str], command: str
) -> None:
    assert resume_command(argv, environ) == command
