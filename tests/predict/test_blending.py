"""Blends of predictions files: the right weights for the right patients and rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import sigmoid
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.evaluation.predictions import (
    COLUMNS,
    ENTROPY_COLUMNS,
    KEY_COLUMNS,
    LABEL_COLUMNS,
    SERIES_PROB_COLUMNS,
    STD_COLUMNS,
    labels_NK,
    probs_NK,
    read_predictions,
    write_predictions,
)
from ichfast.labels import CLASSES
from ichfast.predict.averages import binary_entropy
from ichfast.predict.blending import blend_files, fit_weights

NUM_SLICES = 60
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, (NUM_SLICES, len(CLASSES))).astype(np.float64)


def make_table(name: str, strength: float) -> pd.DataFrame:
    """Predictions of one run; the greater the strength, the better."""
    rng = np.random.default_rng(len(name))
    rows = [
        (f"ID_{n}", f"R{n // 6}", f"S{n // 6}", f"P{n // 12}", n, 0, name, False)
        for n in range(NUM_SLICES)
    ]
    table = pd.DataFrame(rows, columns=list(KEY_COLUMNS))
    table["trained_on"] = table["trained_on"].astype("boolean")
    signal = strength * (2.0 * LABELS - 1.0)
    table[list(CLASSES)] = sigmoid(signal + rng.normal(size=LABELS.shape))
    table[list(LABEL_COLUMNS)] = LABELS
    return table


TABLES = {
    "a": make_table("a", 1.0),
    "bb": make_table("bb", 0.5),
    "ccc": make_table("ccc", 0.0),
}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for name, table in TABLES.items():
        shuffled = table.sample(frac=1.0, random_state=len(name))
        write_predictions(tmp_path / f"{name}.parquet", shuffled)
    return [tmp_path / f"{name}.parquet" for name in TABLES]


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    number = table["slice_id"].str.removeprefix("ID_").astype(int)
    return table.iloc[np.argsort(number)].reset_index(drop=True)


def test_equal_weights_give_the_mean_by_slice(
    paths: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "blend.csv"
    report = blend_files(paths, out, weights="equal")
    table = in_order(read_predictions(out))
    each = [probs_NK(table) for table in TABLES.values()]
    np.testing.assert_allclose(probs_NK(table), np.mean(each, axis=0), atol=1e-8)
    np.testing.assert_allclose(
        table[list(STD_COLUMNS)], np.std(each, axis=0), atol=1e-8
    )
    np.testing.assert_allclose(
        table[list(ENTROPY_COLUMNS)], binary_entropy(probs_NK(table)), atol=1e-7
    )
    np.testing.assert_array_equal(labels_NK(table), LABELS)
    assert tuple(table.columns) == (*COLUMNS, *STD_COLUMNS, *ENTROPY_COLUMNS)
    assert set(table["run"]) == {"a+bb+ccc"}
    assert (table["fold"] == 0).all()
    assert report.weights_file is None
    assert not list(tmp_path.glob("*.json"))


def test_fitted_weights_are_the_best_of_a_grid_of_tenths() -> None:
    probs_FNK = np.stack([probs_NK(table) for table in TABLES.values()])
    labels = LABELS.copy()
    labels[::3, 1] = np.nan
    labels[:, 2] = np.nan
    weights_KF = fit_weights(probs_FNK, labels)
    grid = [
        each
        for each in itertools.product(range(11), repeat=3)
        if sum(each) == 10
    ]  # fmt: skip
    for k, weights_F in enumerate(weights_KF):
        known = ~np.isnan(labels[:, k])
        if k == 2:
            assert weights_F.tolist() == [1 / 3] * 3
            continue
        losses = []
        for tenths in grid:
            p = np.tensordot(np.array(tenths) / 10, probs_FNK[:, known, k], 1)
            y = labels[known, k]
            losses.append(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
        best = np.array(grid[int(np.argmin(losses))]) / 10
        np.testing.assert_allclose(weights_F, best, atol=1e-12)
        assert weights_F[0] > weights_F[2]


def test_equally_good_weights_are_the_nearest_to_equal_ones() -> None:
    probs_NK_ = probs_NK(TABLES["a"])
    weights_KF = fit_weights(np.stack([probs_NK_, probs_NK_]), LABELS)
    np.testing.assert_array_equal(weights_KF, 0.5)


@pytest.mark.parametrize(("num_files", "step"), [(5, 0.1), (6, 0.2), (12, 1 / 3)])
def test_many_files_have_a_coarser_grid(num_files: int, step: float) -> None:
    rng = np.random.default_rng(1)
    probs_FNK = rng.uniform(0.1, 0.9, (num_files, 30, 1))
    (weights_F,) = fit_weights(probs_FNK, (probs_FNK[0] > 0.5).astype(np.float64))
    assert weights_F.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights_F / step, np.round(weights_F / step), atol=1e-9)
    assert weights_F[0] > 1.5 / num_files


def test_weights_fitted_on_validation_patients_are_applied_to_others(
    paths: list[Path], tmp_path: Path
) -> None:
    report = blend_files(paths, tmp_path / "valid.parquet")
    losses = report.weighted_log_loss
    table = in_order(read_predictions(tmp_path / "valid.parquet"))
    assert losses["blend"] == pytest.approx(weighted_log_loss(probs_NK(table), LABELS))
    assert losses["blend"] <= min(losses.values())
    unlabelled = []
    for path in paths:
        unlabelled.append(tmp_path / f"test-{path.name}")
        table = read_predictions(path)
        table[list(LABEL_COLUMNS)] = np.nan
        write_predictions(unlabelled[-1], table)
    out = tmp_path / "test.parquet"
    again = blend_files(unlabelled, out, weights=str(report.weights_file))
    assert again.weights == report.weights
    assert again.weighted_log_loss == {}
    np.testing.assert_allclose(
        probs_NK(in_order(read_predictions(out))),
        probs_NK(in_order(read_predictions(tmp_path / "valid.parquet"))),
        atol=1e-6,
    )


def test_folds_runs_patients_and_series_are_joined(tmp_path: Path) -> None:
    first, second = (TABLES[name].copy() for name in ("a", "bb"))
    second["run"] = np.where(np.arange(NUM_SLICES) < 30, "a+z", "y")
    second.loc[0, "fold"] = 3
    first.loc[[1, 2], "trained_on"] = pd.NA
    second.loc[[1, 3], "trained_on"] = True
    for table in (first, second):
        table[list(SERIES_PROB_COLUMNS)] = probs_NK(table)[::6].repeat(6, axis=0)
        write_predictions(tmp_path / f"{table['run'][59]}.csv", table)
    paths = [tmp_path / "a.csv", tmp_path / "y.csv"]
    blend_files(paths, tmp_path / "out.parquet", weights="equal")
    table = read_predictions(tmp_path / "out.parquet")
    assert table["run"].tolist() == ["a+z"] * 30 + ["a+y"] * 30
    assert table["fold"].tolist() == [-1, *[0] * 59]
    assert table["trained_on"].tolist()[:5] == [False, True, pd.NA, True, False]
    mean = (first[list(SERIES_PROB_COLUMNS)] + second[list(SERIES_PROB_COLUMNS)]) / 2
    np.testing.assert_allclose(table[list(SERIES_PROB_COLUMNS)], mean, atol=1e-8)


def without_first(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[1:]


def with_other_label(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(label_any=1.0 - table["label_any"])


def without_labels(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**dict.fromkeys(LABEL_COLUMNS, np.nan))


def trained_on(table: pd.DataFrame) -> pd.DataFrame:
    values = [True] * 2 + [None] * 3 + [False] * 55
    return table.assign(trained_on=pd.array(values, "boolean"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_first, r"lacks 1 of the 60 slices of .*a.csv and has 0 others; pred"),
        (with_other_label, r"b.csv has other labels than .*a.csv; predict both from"),
        (trained_on, r"^5 of 60 labelled slices in .*b.csv are of patients that its"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], message: str, tmp_path: Path
) -> None:
    write_predictions(tmp_path / "a.csv", TABLES["a"])
    write_predictions(tmp_path / "b.csv", change(TABLES["bb"]))
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(PredictionError, match=message):
        blend_files(paths, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_slices_without_labels_have_no_weights_to_fit(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a.csv", without_labels(TABLES["a"]))
    with pytest.raises(
        PredictionError, match=r"a\.csv has no labels to fit weights on"
    ):
        blend_files([tmp_path / "a.csv"] * 2, tmp_path / "out.csv")
    with pytest.raises(PredictionError, match="two predictions files or more"):
        blend_files([tmp_path / "a.csv"], tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read weights from .*: FileNotFoundError|No such file"),
        ({"any": [2.0, -1.0, 0.0]}, "from 0 to 1 for each class"),
        ({"any": [0.5, 0.1, 0.1]}, "do not add up to 1"),
        ({"any": [0.5, 0.5]}, "cannot read weights from"),
        ({name: [0.5, 0.5] for name in CLASSES}, "has weights of 2 files, found 3"),
        ({"any": "x"}, "cannot read weights from"),
    ],
)
def test_crafted_weights_are_one_line(
    content: dict[str, object] | None,
    message: str,
    paths: list[Path],
    tmp_path: Path,
) -> None:
    from ichfast.system.checksums import with_checksum

    file = tmp_path / "weights.json"
    if content is not None:
        weights = {name: [0.2, 0.3, 0.5] for name in CLASSES} | content
        file.write_text(with_checksum({"weights": weights}))
    with pytest.raises(PredictionError, match=message):
        blend_files(paths, tmp_path / "out.csv", weights=str(file))


def test_edited_weights_are_refused(paths: list[Path], tmp_path: Path) -> None:
    report = blend_files(paths, tmp_path / "valid.csv")
    file = Path(str(report.weights_file))
    found = json.loads(file.read_text())
    found["weights"]["any"] = [0.0, 0.0, 1.0]
    file.write_text(json.dumps(found))
    with pytest.raises(PredictionError, match="its checksum is wrong"):
        blend_files(paths, tmp_path / "out.csv", weights=str(file))
