"""`ichfast predict` as torchrun starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from ichfast.evaluation.predictions import read_predictions
from ichfast.predict.ensemble import predict_runs
from tests.runs.trainedruns import write_run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread_and_seed")
def test_torchrun_predicts_on_two_ranks_and_writes_one_table(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, arch="efficientnet-b0")
    out = tmp_path / "p.parquet"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "-m", "ichfast",
        "predict", run, out, "--device", "cpu",
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
    (line,) = done.stdout.splitlines()  # only one rank prints
    assert json.loads(line)["slices"] == 17
    assert done.stderr.count("device: cpu") == 1
    expected = predict_runs([run], device=torch.device("cpu"))
    written = read_predictions(out)[list(expected.columns)]
    pd.testing.assert_frame_equal(
        written, expected, check_exact=True, check_dtype=False
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run", "p.parquet", "p.parquet.sha256")
    }
