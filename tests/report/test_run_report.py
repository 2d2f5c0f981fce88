"""The report of a run's folder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ichfast.predict.ensemble import predict_runs
from ichfast.report.run_report import _groups, report_run
from ichfast.runs.record import RunRecord, read_record, write_record
from ichfast.series.record import read_series_record
from ichfast.store.store import Store
from tests.conftest import TINY_ARCH
from tests.evaluation.planted import calibration_of, plant
from tests.runs.trainedruns import write_run
from tests.series.seriesruns import CONFIG, write_series_run

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_page_names_weights_without_their_folder(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    weights = "/home/zebulon.quibblesworth/best.pt"
    run = write_run(tmp_path / "run", tiny_store_path, f"model.weights={weights}")
    table = predict_runs([run], device=CPU)
    report_run(run, table, tmp_path / "report.html", device=CPU)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "best.pt" in page
    for folder in ("zebulon", str(tmp_path), str(tiny_store_path)):
        assert folder not in page


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_page_of_a_calibrated_run_has_its_calibration(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path)
    table = predict_runs([run], device=CPU)
    pages = []
    for calibration in (None, calibration_of(plant(20))):
        write_record(run, replace(read_record(run), calibration=calibration))
        report_run(run, table, tmp_path / "report.html", device=CPU)
        pages.append((tmp_path / "report.html").read_text("utf-8"))
    assert ["chosen on 640 slices of 20 patients" in page for page in pages] == [
        False,
        True,
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_series_run_shows_its_head_over_the_backbone_that_held_its_fold_out(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_series_run(tmp_path, tiny_store_path, fold=1)
    table = predict_runs([run], device=CPU)
    shown: list[RunRecord] = []

    def activations_of(*given: Any) -> None:
        shown.append(given[3])

    monkeypatch.setattr("ichfast.report.run_report.activations_of", activations_of)
    report_run(run, table, tmp_path / "report.html", device=CPU)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert shown[0].recipe.folds.fold == 1
    record = read_series_record(run)
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    for told in (
        f"Series head (gru) over {TINY_ARCH} at 32 px",
        "head.hidden 4",
        f"share of the head.subdural {record.blend[-1]}",
        "backbones 2",
        f"backbone.model.arch {TINY_ARCH}",
        f"train_series {record.counts.train_series}",
        f"of {CONFIG.epochs} by weighted validation loss",
        "this series by its head",
    ):
        assert told in text
    for name in (str(tmp_path), "fold0", "fold1"):
        assert name not in page


def test_columns_are_shown_where_there_are_several_groups(tiny_store: Store) -> None:
    tiny_store.table["sex"] = ["M"] * 10 + ["F"] * 19
    tiny_store.table["kernel"] = "soft"
    predicted = tiny_store.table[["slice_id"]][::-1]
    groups = _groups(predicted, tiny_store)
    assert list(groups) == ["sex"]
    assert groups["sex"].astype(str).tolist() == ["F"] * 19 + ["M"] * 10
