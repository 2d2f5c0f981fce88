"""The report of a run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ichfast.predict.ensemble import predict_runs
from ichfast.report.run_report import _groups, report_run
from ichfast.runs.record import read_record, write_record
from ichfast.store.store import Store
from tests.evaluation.planted import calibration_of, plant
from tests.runs.trainedruns import write_run

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


def test_columns_are_shown_where_there_are_several_groups(tiny_store: Store) -> None:
    tiny_store.table["sex"] = ["M"] * 10 + ["F"] * 19
    tiny_store.table["kernel"] = "soft"
    predicted = tiny_store.table[["slice_id"]][::-1]
    groups = _groups(predicted, tiny_store)
    assert list(groups) == ["sex"]
    assert groups["sex"].astype(str).tolist() == ["F"] * 19 + ["M"] * 10
