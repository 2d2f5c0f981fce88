"""The command calibrate, with good and with bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from ichfast.predict.ensemble import predict_runs
from ichfast.runs.record import RECORD
from tests.cli.test_cli import ok, refused, run
from tests.predict.many_patients import write_labels, write_patients
from tests.runs.trainedruns import write_run

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_store_path: Path) -> Path:
    """A folder with runs, stores and labels."""
    import torch

    path = tmp_path_factory.mktemp("calibrate")
    write_patients(path / "store")
    write_run(path / "run", path / "store")
    write_run(path / "leaking", path / "store", "folds.kind=slice")
    write_run(path / "small", tiny_store_path)
    write_patients(path / "unlabelled", labelled=False, name="Q")
    table = predict_runs(
        [path / "run"], device=torch.device("cpu"), store_path=path / "unlabelled"
    )
    write_labels(path / "labels.csv", table)
    studies = pd.DataFrame({"StudyInstanceUID": ["QS1", "QS2"], "any": [0, 1]})
    studies.to_csv(path / "studies.csv", index=False)
    return path


@pytest.mark.slow
def test_a_run_is_calibrated_twice_and_keeps_the_second(place: Path) -> None:
    first = ok("calibrate", place / "run", *CPU)
    assert first["former"] is None
    assert first["calibration"]["aim"] == {"figure": "sensitivity", "value": 0.95}
    again = run(
        "calibrate", place / "run", "--store", place / "unlabelled",
        "--labels", place / "labels.csv", "--specificity", "0.9", *CPU,
    )  # fmt: skip
    found = json.loads(again.stdout)
    assert found["former"] == first["calibration"]
    assert found["calibration"]["aim"] == {"figure": "specificity", "value": 0.9}
    kept = json.loads((place / "run" / RECORD).read_text())["calibration"]
    assert kept == found["calibration"]
    assert "144 slices of 24 patients" in again.stderr
    assert "thresholds at a specificity of 0.9" in again.stderr
    assert ok("calibrate", place / "run", "--remove")["former"] == kept
    removed = json.loads((place / "run" / RECORD).read_text())["calibration"]
    assert removed is None
    assert ok("calibrate", place / "run", "--remove")["former"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("nowhere", "make one with `ichfast train`"),
        ("leaking", "trained on, on whom it is more certain than on others; name a"),
        ("small", "a calibration needs at least 10; name a store of more patients"),
        ("run --store nowhere", "ichfast prepare"),
        ("run --store unlabelled", "has no label of a slice, so there is nothing to"),
        ("run --labels nowhere.csv", "no label file at nowhere.csv"),
        ("run --labels labels.csv", "--labels has no label of a slice of"),
        ("run --store unlabelled --labels studies.csv", "--labels is by study"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    command: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = {path: path.read_bytes() for path in place.glob("*/run.json")}
    assert message in refused("calibrate", *command.split(), *CPU)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sensitivity 0.9 --specificity 0.9", "--specificity, not both"),
        ("--sensitivity 0", "0.0 is not in the range 0<x<=1"),
        ("--specificity 1.5", "1.5 is not in the range 0<x<=1"),
        ("--remove --store other", "--remove takes no other option"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: str, message: str) -> None:
    assert message in refused("calibrate", "run", *options.split(), status=2)
