"""An exported series run equals `ichfast predict`, and its card describes it."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.errors import ModelError
from ichfast.evaluation.predictions import probs_NK, series_probs_NK
from ichfast.export.export import ONNX_PACKAGES, export_run, series_module
from ichfast.predict.ensemble import predict_runs
from ichfast.predict.extract import extract_features
from ichfast.series.config import SeriesConfig
from ichfast.series.folder import open_series_run
from ichfast.series.record import read_series_record, write_series_record
from ichfast.store.store import Store
from tests.conftest import write_store
from tests.evaluation.planted import calibration_of, plant
from tests.export.test_export import CPU, stack_hu
from tests.runs.trainedruns import write_folds, write_run
from tests.series.seriesruns import CONFIG, train

Floats = npt.NDArray[np.float64]

pytestmark = pytest.mark.slow

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)
VARIANTS = {
    "gru": CONFIG,
    "two layers, sampled": replace(CONFIG, layers=2, max_slices=4),
    "deltas": replace(CONFIG, deltas=True, max_slices=6),
    "transformer": replace(CONFIG, kind="transformer", max_slices=5),
}


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store as another one, so that all backbones predict all of it."""
    path = tmp_path_factory.mktemp("other") / "store"
    write_store(path, plan={"listing": "another"})
    return path


@pytest.fixture(scope="module")
def features(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the runs of two folds."""
    folder = tmp_path_factory.mktemp("backbones")
    runs = write_folds(folder, tiny_store_path)
    extract_features(runs, folder / "features", device=CPU)
    return folder / "features"


def trained(features: Path, run_dir: Path, config: SeriesConfig = CONFIG) -> Path:
    """A series run whose blend takes something of everything."""
    train(features, run_dir, config)
    record = read_series_record(run_dir)
    write_series_record(run_dir, replace(record, blend=SHARES))
    return run_dir


def predictions(
    run: Path, store_path: Path, series: str
) -> tuple[torch.Tensor, Floats, Floats]:
    """HU of a series, and what `predict` finds for its slices and for itself."""
    table = predict_runs([run], device=CPU, store_path=store_path)
    of_series = series_probs_NK(table)
    assert of_series is not None
    rows = np.flatnonzero(table["series"] == series)
    with Store(store_path) as store:
        hu_ZHH = stack_hu(store, rows)
    return hu_ZHH, probs_NK(table)[rows], of_series[rows[0]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_module_equals_predict(
    variant: str, features: Path, other_store: Path, tmp_path: Path
) -> None:
    run = trained(features, tmp_path / "run", VARIANTS[variant])
    module = series_module(open_series_run(run))
    for series in ("R1", "R4"):
        hu_ZHH, slices, of_series = predictions(run, other_store, series)
        with torch.inference_mode():
            found_ZK, found_K = module(hu_ZHH)
        assert slices.std(axis=0).max() > 0.01  # not the same for all slices
        np.testing.assert_allclose(found_ZK, slices, atol=1e-4)
        np.testing.assert_allclose(found_K, of_series, atol=1e-4)


def test_a_backbone_of_slabs_sees_the_slices_around(
    tiny_store_path: Path, other_store: Path, tmp_path: Path
) -> None:
    backbone = write_run(
        tmp_path / "run", tiny_store_path, "data.windows=brain", "data.neighbours=1"
    )
    extract_features([backbone], tmp_path / "features", device=CPU)
    run = trained(tmp_path / "features", tmp_path / "series")
    hu_ZHH, slices, of_series = predictions(run, other_store, "R1")
    with torch.inference_mode():
        found_ZK, found_K = series_module(open_series_run(run))(hu_ZHH)
    np.testing.assert_allclose(found_ZK, slices, atol=1e-4)
    np.testing.assert_allclose(found_K, of_series, atol=1e-4)


def test_one_file_takes_series_of_any_length(
    features: Path, other_store: Path, tmp_path: Path
) -> None:
    run = trained(features, tmp_path / "run", replace(CONFIG, max_slices=6))
    calibration = calibration_of(plant(10), factor=3.0, shift=1.0)
    record = read_series_record(run)
    write_series_record(run, replace(record, calibration=calibration))
    report = export_run(run, tmp_path / "model.pt2")
    assert report.input_shape == ("slices", 512, 512)
    model = torch.export.load(report.model).module()
    module = series_module(open_series_run(run))
    hu_ZHH, slices, of_series = predictions(run, other_store, "R1")
    with torch.inference_mode():
        found_ZK, found_K = model(hu_ZHH)
        np.testing.assert_allclose(found_ZK, slices, atol=1e-4)
        np.testing.assert_allclose(found_K, of_series, atol=1e-4)
        for num_slices in (1, 2, 6):
            part = hu_ZHH[:num_slices]
            torch.testing.assert_close(model(part), module(part), atol=1e-5, rtol=0)
    card = Path(report.card).read_text("utf-8")
    for words in (
        "Not a medical device", r"one whole series.*\(slices, 512, 512\)",
        "more than 6 slices", "epidural 0.25", "2 networks", "each on all patients but",
        "weighted log loss", "The probabilities are calibrated", "commit",
    ):  # fmt: skip
        assert re.search(words, card), words
    assert str(tmp_path) not in card


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ONNX_PACKAGES),
    reason="writing .onnx needs onnx and onnxscript",
)
def test_an_onnx_file_names_both_outputs(features: Path, tmp_path: Path) -> None:
    import onnx

    run = trained(features, tmp_path / "run", replace(CONFIG, max_slices=6))
    report = export_run(run, tmp_path / "model.onnx")
    graph = onnx.load(report.model).graph
    assert [output.name for output in graph.output] == ["probs", "series_probs"]
    assert "GRU" in {node.op_type for node in graph.node}


def test_a_head_that_reads_millimetres_is_refused(
    features: Path, tmp_path: Path
) -> None:
    run = trained(features, tmp_path / "run", replace(CONFIG, position="z"))
    with pytest.raises(ModelError, match="reads slice positions in mm, which an"):
        export_run(run, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
