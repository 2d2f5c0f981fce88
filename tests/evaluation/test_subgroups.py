"""Groups of slices are evaluated one by one, and small ones are only counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.errors import PredictionError
from ichfast.evaluation.evaluate_file import METRICS_FILE
from ichfast.evaluation.evaluation import evaluate
from ichfast.evaluation.predictions import LABEL_COLUMNS, write_predictions
from ichfast.evaluation.scoretable import format_subgroups
from ichfast.evaluation.subgroups import MIN_PATIENTS, evaluate_subgroups, read_groups
from ichfast.store.groups import Groups
from tests.evaluation.test_evaluation import make_table
from tests.store.slice_store import simple_rows, write_slices

SLICES_A_PATIENT = 14


def grouped(
    *sizes: tuple[str, int],
) -> tuple[pd.DataFrame, Groups]:
    """A predictions table, and groups of so many patients each."""
    names = [name for name, size in sizes for _ in range(size * SLICES_A_PATIENT)]
    table = make_table(len(names))
    kinds = pd.CategoricalDtype([name for name, _ in sizes], ordered=True)
    return table, pd.Series(names, table.index).astype(kinds)


def test_the_figures_of_a_group_are_those_of_its_slices_alone() -> None:
    table, groups = grouped(("b", 12), ("a", 15))
    b, a = evaluate_subgroups(table, groups, level="slice", replicates=20)
    for group, rows in ((b, table[groups == "b"]), (a, table[groups == "a"])):
        alone = evaluate(rows, replicates=20)
        assert group.scores == alone.levels["slice"]
        of_any = alone.levels["slice"].classes["any"]
        assert of_any is not None
        assert of_any.intervals["auc"] is not None
        assert (group.count, group.positives) == (len(rows), of_any.positives)
        assert group.patients == alone.levels["patient"].count


def test_figures_need_enough_patients_and_both_labels() -> None:
    table, groups = grouped(
        *(("few", MIN_PATIENTS - 1), ("enough", MIN_PATIENTS)),
        *(("negative", 12), ("positive", 12), ("unlabelled", 12)),
    )
    table.loc[groups == "negative", list(LABEL_COLUMNS)] = 0.0
    table.loc[groups == "positive", list(LABEL_COLUMNS)] = 1.0
    table.loc[groups == "unlabelled", list(LABEL_COLUMNS)] = np.nan
    found = evaluate_subgroups(table, groups, level="slice", replicates=0)
    assert {group.name: group.reason for group in found} == {
        "few": "fewer than 10 patients",
        "enough": "",
        "negative": "no positive",
        "positive": "no negative",
    }
    assert all((group.scores is None) == bool(group.reason) for group in found)
    text = format_subgroups("kernel", found)
    assert text.splitlines()[0].startswith("by kernel")
    assert "none: fewer than 10 patients" in text


# ---- with a store ----


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of the slices of `make_table`, with columns of acquisition."""
    count = 30 * SLICES_A_PATIENT
    known = [k < count * 2 // 3 for k in range(count)]
    rows = simple_rows(
        count,
        slice_id=[f"ID_{k:09x}" for k in range(count)],
        manufacturer=["GE" if is_known else None for is_known in known],
        age_decade=[40 if is_known else None for is_known in known],
    )
    slices = [np.zeros((2, 2), np.uint16)] * count
    write_slices(
        tmp_path / "store", slices, rows, np.zeros((count, 6), int), levels=(512,)
    )
    return tmp_path / "store"


def test_groups_come_from_the_store(store: Path, tmp_path: Path) -> None:
    table = make_table(30 * SLICES_A_PATIENT)
    write_predictions(tmp_path / "p.csv", table[::-1])
    arguments = ["evaluate", str(tmp_path / "p.csv"), "--bootstrap", "20"]
    result = CliRunner().invoke(
        cli,
        [
            *arguments,
            "--by",
            "manufacturer",
            "--by",
            "age_decade",
            "--store",
            str(store),
        ],
    )
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / METRICS_FILE).read_bytes())["subgroups"]
    counts = {
        column: {group["name"]: group["patients"] for group in groups}
        for column, groups in figures.items()
    }
    assert counts == {
        "manufacturer": {"GE": 20, "unknown": 10},
        "age_decade": {"40-49": 20, "unknown": 10},
    }
    ge = table.iloc[: 20 * SLICES_A_PATIENT]
    alone = evaluate(ge, replicates=20).levels["slice"].weighted_log_loss
    found = figures["manufacturer"][0]["scores"]["weighted_log_loss"]
    assert found == pytest.approx(alone, rel=1e-6)
    assert "by manufacturer" in result.stderr


def test_what_is_not_in_the_store_is_refused(store: Path) -> None:
    table = make_table(30 * SLICES_A_PATIENT + 1)
    with pytest.raises(PredictionError, match="1 of 421 predicted slices are not in"):
        read_groups(table, store, ["kernel"])
    with pytest.raises(PredictionError, match="unknown column of --by 'vendor'"):
        read_groups(table, store, ["vendor"])


def test_by_and_store_go_together(tmp_path: Path) -> None:
    for option in (["--by", "kernel"], ["--store", "x"]):
        result = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "p.csv"), *option])
        assert result.exit_code == 2
        assert "go together" in result.stderr
