"""The figures of a prediction agree with hand computation and scikit-learn."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from ichfast.errors import PredictionError
from ichfast.labels import CLASSES
from ichfast.metrics import (
    accuracy,
    calibration_error,
    class_log_loss_K,
    evaluate,
    format_evaluation,
    prevalence_loss,
    sensitivity_at,
    weighted_log_loss,
)
from ichfast.predictions import COLUMNS, LABEL_COLUMNS, labels_NK, probs_NK

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
        }
    )
    table[list(CLASSES)] = 1 / (1 + np.exp(-logits))
    table[list(LABEL_COLUMNS)] = labels
    return table[list(COLUMNS)]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def probs(table: pd.DataFrame) -> Floats:
    return probs_NK(table)


@pytest.fixture(scope="module")
def labels(table: pd.DataFrame) -> Floats:
    return labels_NK(table)


def test_the_loss_of_two_slices_by_hand() -> None:
    probs = np.array([[0.9, 0.5, 0.5, 0.5, 0.5, 0.8], [0.1, 0.2, 0.2, 0.2, 0.2, 0.2]])
    labels = np.array([[1.0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    first = (2 * -math.log(0.9) + 4 * math.log(2) - math.log(0.8)) / 7
    second = (2 * -math.log(0.9) + 5 * -math.log(0.8)) / 7
    expected = (first + second) / 2
    assert weighted_log_loss(probs, labels) == pytest.approx(expected, abs=1e-12)


def test_a_sure_and_wrong_answer_costs_what_the_clip_says() -> None:
    probs, labels = np.ones((1, 6)), np.zeros((1, 6))
    assert weighted_log_loss(probs, labels, clip=1e-6) == pytest.approx(
        -math.log(1e-6), abs=1e-9
    )
    assert weighted_log_loss(probs, labels) == pytest.approx(34.54, abs=0.01)


def test_float32_probabilities_are_clipped_in_float64() -> None:
    labels = np.zeros((1, 6))
    assert math.isfinite(weighted_log_loss(np.ones((1, 6), np.float32), labels))


def test_losses_agree_with_scikit_learn(probs: Floats, labels: Floats) -> None:
    by_class = [
        sklearn_metrics.log_loss(labels[:, k], probs[:, k], labels=[0, 1])
        for k in range(6)
    ]
    np.testing.assert_allclose(class_log_loss_K(probs, labels), by_class, atol=1e-12)
    expected = np.average(by_class, weights=[2, 1, 1, 1, 1, 1])
    assert weighted_log_loss(probs, labels) == pytest.approx(expected, abs=1e-12)


def test_class_scores_agree_with_scikit_learn(
    table: pd.DataFrame, probs: Floats, labels: Floats
) -> None:
    classes = evaluate(table).slice.classes
    for k, name in enumerate(CLASSES):
        y, p = labels[:, k], probs[:, k]
        scores = classes[name]
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


def test_no_constant_beats_the_prevalence(labels: Floats) -> None:
    best = prevalence_loss(labels)
    prevalence_K = labels.mean(axis=0)
    for k in range(6):
        for change in (-0.01, 0.01):
            other_K = prevalence_K.copy()
            other_K[k] += change
            constant = np.tile(other_K, (len(labels), 1))
            assert weighted_log_loss(constant, labels) > best


def test_the_competitions_prevalence_scores_what_is_known() -> None:
    # The stage-1 training set has 674,258 slices with these many positives.
    positives = [97_103, 2_761, 32_564, 23_766, 32_122, 42_496]
    share = [count / 674_258 for count in positives]
    entropy = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in share]
    expected = (2 * entropy[0] + sum(entropy[1:])) / 7
    labels = (np.arange(100_000)[:, None] < np.array(share) * 100_000).astype(float)
    assert prevalence_loss(labels) == pytest.approx(expected, abs=1e-4)
    assert expected == pytest.approx(0.232, abs=5e-4)


def test_accuracy_counts_every_output_at_one_half() -> None:
    probs = np.array([[0.6, 0.4, 0.5, 0.5, 0.0, 1.0]])
    labels = np.array([[1.0, 0, 0, 0, 0, 0]])
    assert accuracy(probs, labels) == pytest.approx(5 / 6, abs=1e-12)


def test_sensitivity_uses_every_threshold_the_specificity_allows() -> None:
    negatives = np.linspace(0.0, 0.9, 10)  # 0.0, 0.1, ... 0.9
    positives = np.array([0.95, 0.85, 0.75, 0.05])
    probs = np.r_[negatives, positives]
    labels = np.r_[np.zeros(10), np.ones(4)]
    assert sensitivity_at(probs, labels, specificity=1.0) == 0.25
    assert sensitivity_at(probs, labels, specificity=0.9) == 0.50
    assert sensitivity_at(probs, labels, specificity=0.8) == 0.75
    assert sensitivity_at(probs, labels, specificity=0.0) == 1.00


def test_calibration_error_by_hand() -> None:
    probs = np.array([0.05, 0.05, 0.95, 1.0])
    labels = np.array([0.0, 1.0, 1.0, 1.0])
    expected = 0.5 * abs(0.05 - 0.5) + 0.5 * abs(0.975 - 1.0)
    assert calibration_error(probs, labels, num_bins=10) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_class_with_one_value_has_no_auc(table: pd.DataFrame) -> None:
    without = table.assign(label_epidural=0.0)
    scores = evaluate(without).slice.classes["epidural"]
    assert scores.auc is scores.average_precision is scores.sensitivity_at_90 is None
    lines = format_evaluation(evaluate(without)).splitlines()
    (auc_line,) = (line for line in lines if line.startswith("AUC"))
    assert auc_line.split()[3:][CLASSES.index("epidural")] == "-"


def test_a_study_scores_and_is_labelled_its_maximum(table: pd.DataFrame) -> None:
    probs, labels = (
        table.groupby("study")[list(names)].max().to_numpy()
        for names in (CLASSES, LABEL_COLUMNS)
    )
    study = evaluate(table).study
    assert study.count == -(-NUM_SLICES // 7)
    assert study.weighted_log_loss == pytest.approx(
        weighted_log_loss(probs, labels), abs=1e-12
    )
    assert evaluate(table).patient.count == -(-NUM_SLICES // 14)


def test_slices_without_a_patient_count_as_one(table: pd.DataFrame) -> None:
    unknown = table.assign(patient=None)
    assert evaluate(unknown).patient.count == 1


def test_unlabelled_slices_are_left_out_and_counted(table: pd.DataFrame) -> None:
    partly = table.copy()
    partly.loc[:9, "label_any"] = np.nan
    evaluation = evaluate(partly)
    assert evaluation.unlabelled == 10
    assert evaluation.slice == evaluate(table.iloc[10:]).slice


def test_labels_of_any_number_type_are_read(table: pd.DataFrame) -> None:
    nullable = table.astype(dict.fromkeys(LABEL_COLUMNS, "Int8"))
    nullable.loc[0, list(LABEL_COLUMNS)] = pd.NA
    assert evaluate(nullable).unlabelled == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_any": np.nan}, "none of the 211 predicted slices has labels"),
        ({"label_any": 0.5}, "211 labels are neither 0 nor 1, such as 0.5"),
        ({"subdural": 1.5}, "211 predictions lie outside \\[0, 1\\], such as 1.5"),
        ({"subdural": np.nan}, "211 predictions lie outside \\[0, 1\\], such as nan"),
        ({"slice_id": "ID_1"}, "210 rows of the predictions repeat a slice"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    table: pd.DataFrame, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PredictionError, match=message):
        evaluate(table.assign(**change))


def test_an_empty_table_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(PredictionError, match="none of the 0 predicted slices"):
        evaluate(table.iloc[:0])


def test_all_negative_slices_can_be_judged_without_a_ratio() -> None:
    healthy = make_table(7).assign(**dict.fromkeys(LABEL_COLUMNS, 0.0))
    evaluation = evaluate(healthy)
    assert evaluation.slice.ratio is None
    assert evaluation.slice.prevalence_loss == pytest.approx(0.0, abs=1e-12)


def test_the_table_is_left_as_it_was(table: pd.DataFrame) -> None:
    before = table.copy(deep=True)
    evaluate(table)
    pd.testing.assert_frame_equal(table, before)


def test_the_evaluation_becomes_strict_json(table: pd.DataFrame) -> None:
    evaluation = evaluate(table.assign(label_epidural=0.0))
    parsed = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert parsed["weighted_log_loss"] == evaluation.slice.weighted_log_loss
    assert parsed["patient"]["classes"]["epidural"]["auc"] is None


def test_the_text_shows_the_prevalence_beside_the_model(table: pd.DataFrame) -> None:
    evaluation = evaluate(table)
    text = format_evaluation(evaluation)
    accuracy_line = next(line for line in text.splitlines() if "accuracy" in line)
    assert f"{evaluation.slice.accuracy:.4f}" in accuracy_line
    assert f"{evaluation.slice.prevalence_accuracy:.4f}" in accuracy_line
    assert max(map(len, text.splitlines())) <= 110
