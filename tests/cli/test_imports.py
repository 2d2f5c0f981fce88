"""A command loads no library that it does not need; each runs in a new interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.evaluation.predictions import KEY_COLUMNS, LABEL_COLUMNS, write_predictions
from ichfast.labels import CLASSES

HEAVY = (
    *("torch", "timm", "torchvision", "nvidia.dali", "tensorboard"),
    *("sklearn", "matplotlib", "pydicom"),
)
"""Libraries that take tenths of a second to load, or more."""

RUN_AND_LIST = f"""
import sys
from ichfast.cli.main import cli
cli(sys.argv[1:], standalone_mode=False)
print("loaded:", *sorted(set({HEAVY}) & set(sys.modules)))
"""


def loaded_by(*arguments: str | Path) -> set[str]:
    """Run a command to its end; the libraries of `HEAVY` it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_AND_LIST, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labelled slices of 12 patients."""
    path = tmp_path_factory.mktemp("predictions") / "predictions.parquet"
    rng = np.random.default_rng(0)
    labels_NK = rng.integers(0, 2, (60, len(CLASSES)))
    rows = [(f"ID_{n}", "R", "S", f"P{n // 5}", n, 0, "run", False) for n in range(60)]
    table = pd.DataFrame(rows, columns=list(KEY_COLUMNS))
    table[list(CLASSES)] = rng.random(labels_NK.shape)
    table[list(LABEL_COLUMNS)] = labels_NK
    write_predictions(path, table)
    return path


@pytest.mark.slow
def test_recipes_loads_no_heavy_library() -> None:
    assert loaded_by("recipes") == set()
    assert loaded_by("recipes", "exp-30") == set()


@pytest.mark.slow
def test_evaluate_loads_no_heavy_library(predictions: Path) -> None:
    assert loaded_by("evaluate", predictions) == set()


@pytest.mark.slow
def test_blend_loads_no_heavy_library(predictions: Path, tmp_path: Path) -> None:
    assert loaded_by("blend", predictions, predictions, tmp_path / "b.csv") == set()


@pytest.mark.slow
def test_submit_loads_no_heavy_library(predictions: Path, tmp_path: Path) -> None:
    assert loaded_by("submit", predictions, tmp_path / "submission.csv") == set()


@pytest.mark.slow
def test_verify_loads_no_heavy_library(tiny_store_path: Path) -> None:
    assert loaded_by("verify", tiny_store_path) == set()


@pytest.mark.slow
def test_doctor_loads_no_library_that_may_hang_in_a_driver(tmp_path: Path) -> None:
    assert loaded_by("doctor", "--store", tmp_path / "none") == set()


@pytest.mark.slow
def test_inspect_loads_matplotlib_only(tiny_store_path: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert loaded_by("inspect", tiny_store_path, "--sheet", sheet) == {"matplotlib"}


@pytest.mark.slow
def test_compare_loads_matplotlib_only_to_draw(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    # In this process: writing a checkpoint loads torch.
    from tests.runs.trainedruns import write_run

    run = write_run(tmp_path / "run", tiny_store_path, arch="efficientnet-b0")
    assert loaded_by("compare", run, "--csv", tmp_path / "rows.csv") == set()
    drawn = loaded_by("compare", run, "--png", tmp_path / "rows.png")
    assert drawn == {"matplotlib"}


@pytest.mark.slow
def test_training_loads_no_library_of_evaluation_or_charts() -> None:
    code = f"import sys, ichfast.runs.run; print(*set({HEAVY}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"sklearn", "matplotlib", "pydicom"}.isdisjoint(done.stdout.split())
