"""Records of runs that someone crafted, with a valid checksum: one line each."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ichfast.errors import IchfastError
from ichfast.evaluation.calibration import Calibration
from ichfast.export.card import format_calibration, format_card
from ichfast.predict.ensemble import PredictConfig, predict_runs
from ichfast.recipes.settings import from_dict, to_dict
from ichfast.report.charts.results import reliability_curves
from ichfast.report.comparison import compare_runs, format_comparison
from ichfast.runs.record import RECORD, read_record, trained_settings
from ichfast.runs.trained import open_run
from ichfast.system.checksums import FIELD, with_checksum
from ichfast.training.checkpoint import BEST, SETTINGS, load_checkpoint, save_checkpoint
from tests.evaluation.planted import calibration_of, plant
from tests.runs.trainedruns import write_run
from tests.wrong_values import with_wrong_values

NO_JSON = ("=scalar", "=tensor", "=integers", "=nan")
"""Wrong values that a JSON file cannot hold."""

NUM_USED = 24
"""Records of the right types that are used to predict."""


@pytest.fixture(scope="module")
def run_dir(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny_store_path)


@pytest.fixture(scope="module")
def accepted(run_dir: Path) -> dict[str, str]:
    """Crafted records that `read_record` accepts, by what is wrong in them."""
    whole = (run_dir / RECORD).read_text()
    document = json.loads(whole)
    del document[FIELD]
    texts = {
        name: with_checksum(content)
        for name, content in with_wrong_values(document)
        if not name.endswith(NO_JSON)
    }
    found = {name: text for name, text in texts.items() if is_read(run_dir, text)}
    (run_dir / RECORD).write_text(whole)
    assert len(texts) - len(found) > 600
    return found


def is_read(run_dir: Path, text: str) -> bool:
    """Whether a record is accepted; if not, the error is one line."""
    (run_dir / RECORD).write_text(text)
    try:
        read_record(run_dir)
    except IchfastError as error:
        message = str(error)
        assert "\n" not in message
        assert RECORD in message
        return False
    return True


def test_a_record_of_wrong_types_is_refused(accepted: dict[str, str]) -> None:
    of_their_type = ("=text", "=negative", "=fraction", "=missing", "=none", "=truth")
    others = [name for name in accepted if not name.endswith(of_their_type)]
    assert others == []


@pytest.mark.slow
def test_a_record_of_the_right_types_is_used_or_refused_in_one_line(
    accepted: dict[str, str], run_dir: Path
) -> None:
    """Its checkpoint agrees with it."""
    content = load_checkpoint(run_dir / BEST)
    names = random.Random(1).sample(sorted(accepted), NUM_USED)
    for name in names:
        (run_dir / RECORD).write_text(accepted[name])
        settings = trained_settings(read_record(run_dir))
        save_checkpoint(run_dir / BEST, {**content, SETTINGS: settings})
        format_comparison(compare_runs([run_dir]))
        try:
            format_card(open_run(run_dir), Path("model.pt2"))
            table = predict_runs(
                [run_dir], device=torch.device("cpu"), config=PredictConfig(limit=2)
            )
        except IchfastError as error:
            assert "\n" not in str(error), name  # noqa: PT017
        else:
            assert len(table) <= 2, name


@pytest.mark.slow
def test_a_crafted_calibration_is_used_or_refused_in_one_line() -> None:
    calibration = calibration_of(plant(10, slices_each=8))
    document = json.loads(json.dumps(to_dict(calibration)))
    num_used = 0
    for name, content in with_wrong_values(document):
        if name.endswith(NO_JSON):
            continue
        try:
            found = from_dict(Calibration, content)
        except IchfastError as error:
            assert "\n" not in str(error), name  # noqa: PT017
            continue
        num_used += 1
        probs_NK = found.apply(np.linspace(0, 1, 12).reshape(2, 6))
        assert ((probs_NK >= 0) & (probs_NK <= 1)).all(), name
        assert format_calibration(found)
        assert reliability_curves(found).axes
    assert 5 < num_used < 60
