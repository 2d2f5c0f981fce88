"""A predictions table is evaluated by slice, study and patient, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from ichfast.errors import PredictionError
from ichfast.evaluation.evaluation import ClassScores, Evaluation, evaluate
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.evaluation.predictions import COLUMNS, LABEL_COLUMNS, labels_NK, probs_NK
from ichfast.evaluation.scoretable import format_evaluation
from ichfast.labels import CLASSES

NUM_SLICES = 211
Floats = npt.NDArray[np.float64]


def make_table(num_slices: int = NUM_SLICES, *, seed: int = 0) -> pd.DataFrame:
    """Predictions that are better than chance; 7 slices a study, 2 studies a patient.

    Every class has both values.
    """
    rng = np.random.default_rng(seed)
    subtypes = rng.random((num_slices, 5)) < 0.15
    labels = np.column_stack([subtypes.any(axis=1), subtypes]).astype(np.float64)
    logits = rng.normal(-1.5, 1.5, labels.shape) + 2.5 * labels
    study = np.arange(num_slices) // 7
    table = pd.DataFrame(
        {
            "slice_id": [f"ID_{n:09x}" for n in range(num_slices)],
            "series": [f"series{n}" for n in study],
            "study": [f"study{n}" for n in study],
            "patient": [f"patient{n // 2}" for n in study],
            "position_mm": np.arange(num_slices) % 7 * 5.0,
            "fold": 0,
            "run": "made-up",
            "trained_on": False,
        }
    )
    table[list(CLASSES)] = 1 / (1 + np.exp(-logits))
    table[list(LABEL_COLUMNS)] = labels
    return table[list(COLUMNS)]


def scores_of(
    evaluation: Evaluation, class_name: str, *, level: str = "slice"
) -> ClassScores:
    """The figures of a class that has labels."""
    scores = evaluation.levels[level].classes[class_name]
    assert scores is not None
    return scores


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def probs(table: pd.DataFrame) -> Floats:
    return probs_NK(table)


@pytest.fixture(scope="module")
def labels(table: pd.DataFrame) -> Floats:
    return labels_NK(table)


def test_class_scores_agree_with_scikit_learn(
    table: pd.DataFrame, probs: Floats, labels: Floats
) -> None:
    evaluation = evaluate(table)
    for k, name in enumerate(CLASSES):
        y, p = labels[:, k], probs[:, k]
        scores = scores_of(evaluation, name)
        near = pytest.approx
        assert scores.positives == y.sum()
        assert scores.auc == near(sklearn_metrics.roc_auc_score(y, p), abs=1e-12)
        assert scores.average_precision == near(
            sklearn_metrics.average_precision_score(y, p), abs=1e-12
        )
        assert scores.brier == near(sklearn_metrics.brier_score_loss(y, p), abs=1e-12)
        constant = np.full_like(p, y.mean())
        assert scores.prevalence_log_loss == near(
            sklearn_metrics.log_loss(y, constant, labels=[0, 1]), abs=1e-12
        )
        assert scores.prevalence_brier == near(
            sklearn_metrics.brier_score_loss(y, constant), abs=1e-12
        )


def test_a_class_with_one_value_has_no_auc(table: pd.DataFrame) -> None:
    without = table.assign(label_epidural=0.0)
    scores = scores_of(evaluate(without), "epidural")
    assert scores.auc is scores.average_precision is scores.sensitivity_at_90 is None
    lines = format_evaluation(evaluate(without)).splitlines()
    auc_line = next(line for line in lines if line.startswith("AUC"))
    assert auc_line.split()[1:][CLASSES.index("epidural")] == "-"


def test_a_study_has_the_maximum_of_its_slices(table: pd.DataFrame) -> None:
    probs, labels = (
        table.groupby("study")[list(names)].max().to_numpy()
        for names in (CLASSES, LABEL_COLUMNS)
    )
    study = evaluate(table).levels["study"]
    assert study.count == -(-NUM_SLICES // 7)
    assert study.weighted_log_loss == pytest.approx(
        weighted_log_loss(probs, labels), abs=1e-12
    )
    assert evaluate(table).levels["patient"].count == -(-NUM_SLICES // 14)


def test_slices_without_a_patient_count_as_one_of_their_study(
    table: pd.DataFrame,
) -> None:
    evaluation = evaluate(table.assign(patient=""))
    assert evaluation.levels["patient"] == evaluation.levels["study"]


def test_intervals_come_with_replicates_and_contain_the_figure(
    table: pd.DataFrame,
) -> None:
    evaluation = evaluate(table, replicates=100)
    assert evaluation.bootstrap["replicates"] == 100
    for name, level in evaluation.levels.items():
        assert level.weighted_log_loss_interval is not None
        low, high = level.weighted_log_loss_interval
        assert low < level.weighted_log_loss < high
        scores = scores_of(evaluation, "any", level=name)
        auc, interval = scores.auc, scores.intervals["auc"]
        if interval is not None:
            assert auc is not None
            assert interval[0] <= auc <= interval[1]
    assert scores_of(evaluate(table), "any").intervals == {}
    again = evaluate(table, replicates=100)
    assert again == evaluation


def test_one_patient_gives_no_interval(table: pd.DataFrame) -> None:
    one = evaluate(table.assign(patient="p"), replicates=10)
    assert one.first.weighted_log_loss_interval is None
    assert scores_of(one, "any").intervals["auc"] is None


def test_what_prevalence_scores_is_what_a_constant_scores(table: pd.DataFrame) -> None:
    constant = table.assign(**{name: table[f"label_{name}"].mean() for name in CLASSES})
    for name in CLASSES:
        found, expected = (scores_of(evaluate(t), name) for t in (constant, table))
        for field in (
            "log_loss", "brier", "auc", "average_precision", "sensitivity_at_90",
            "sensitivity_at_95", "calibration_error",
        ):  # fmt: skip
            assert getattr(found, field) == pytest.approx(
                getattr(expected, f"prevalence_{field}"), abs=1e-12
            )


def test_unlabelled_slices_are_left_out_and_counted(table: pd.DataFrame) -> None:
    partly = table.copy()
    partly.loc[:13, list(LABEL_COLUMNS)] = np.nan
    evaluation = evaluate(partly, replicates=10)
    assert evaluation.unlabelled == 14
    assert evaluation.levels == evaluate(table.iloc[14:], replicates=10).levels


def test_labels_of_any_number_type_are_read(table: pd.DataFrame) -> None:
    nullable = table.astype(dict.fromkeys(LABEL_COLUMNS, "Int8"))
    nullable.loc[0, list(LABEL_COLUMNS)] = pd.NA
    assert evaluate(nullable).unlabelled == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict.fromkeys(LABEL_COLUMNS, np.nan),
            "none of the 211 predicted slices has a label, so there is nothing",
        ),
        ({"label_any": 0.5}, "211 labels are neither 0 nor 1, such as 0.5"),
        ({"subdural": 1.5}, "211 predictions lie outside \\[0, 1\\], such as 1.5"),
        ({"subdural": np.nan}, "211 predictions lie outside \\[0, 1\\], such as nan"),
        ({"slice_id": "ID_1"}, "210 rows of the predictions repeat a slice"),
    ],
)
def test_a_wrong_table_is_refused(
    table: pd.DataFrame, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PredictionError, match=message):
        evaluate(table.assign(**change))


def test_an_empty_table_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(PredictionError, match="none of the 0 predicted slices"):
        evaluate(table.iloc[:0])


def test_negative_slices_alone_have_no_ratio() -> None:
    healthy = make_table(7).assign(**dict.fromkeys(LABEL_COLUMNS, 0.0))
    evaluation = evaluate(healthy)
    assert evaluation.levels["slice"].ratio is None
    assert evaluation.levels["slice"].prevalence_loss == pytest.approx(0.0, abs=1e-12)


def test_the_table_is_left_as_it_was(table: pd.DataFrame) -> None:
    before = table.copy(deep=True)
    evaluate(table)
    pd.testing.assert_frame_equal(table, before)


def test_the_evaluation_becomes_strict_json(table: pd.DataFrame) -> None:
    evaluation = evaluate(table.assign(label_epidural=0.0))
    parsed = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert parsed["weighted_log_loss"] == evaluation.levels["slice"].weighted_log_loss
    assert parsed["patient"]["classes"]["epidural"]["auc"] is None


def test_the_text_shows_the_prevalence_beside_the_model(table: pd.DataFrame) -> None:
    evaluation = evaluate(table)
    text = format_evaluation(evaluation)
    accuracy_line = next(line for line in text.splitlines() if "accuracy" in line)
    assert f"{evaluation.first.accuracy:.4f}" in accuracy_line
    assert f"{evaluation.first.prevalence_accuracy:.4f}" in accuracy_line
    assert max(map(len, text.splitlines())) <= 110


def with_negatives(num_negative: int) -> pd.DataFrame:
    """40 studies of one slice, some of them negative for any."""
    table = make_table(40)
    for column in ("series", "study", "patient"):
        table[column] = [f"{column}{n}" for n in range(40)]
    labels = np.zeros((40, 6))
    labels[num_negative:] = 1.0
    table[list(LABEL_COLUMNS)] = labels
    return table


def test_fewer_than_30_negatives_are_a_warning_beside_the_figures() -> None:
    warning = (
        "29 of 40 studies are negative for any, fewer than 30: figures by study "
        "may be far off"
    )
    evaluation = evaluate(with_negatives(29))
    assert evaluation.warnings[0] == warning
    assert evaluation.to_json()["warnings"] == evaluation.warnings
    assert [text.split()[3] for text in evaluation.warnings] == ["studies", "patients"]
    lines = format_evaluation(evaluation).splitlines()
    assert lines[1] == f"warning: {warning}"
    block = next(n for n, line in enumerate(lines) if line.startswith("by study"))
    assert lines[block - 1] == f"warning: {warning}"
    assert lines[block - 2] == ""
    assert evaluate(with_negatives(30)).warnings == []
    assert "warning" not in format_evaluation(evaluate(with_negatives(30)))
    series = evaluate(with_negatives(1), level="series").warnings
    assert series[0].startswith("1 of 40 series is negative for any,")


def test_the_class_with_the_fewest_negatives_is_the_one_warned_of() -> None:
    table = with_negatives(30)
    table.loc[:27, "label_subdural"] = np.nan
    warning = evaluate(table).warning_of("study")
    assert warning.startswith("2 of 40 studies are negative for subdural,")


def test_slices_are_never_too_few_for_their_own_figures() -> None:
    assert evaluate(with_negatives(29)).warning_of("slice") == ""
