"""Each class is evaluated on the slices, studies and patients whose label is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from ichfast.errors import PredictionError
from ichfast.evaluation.along_series import along_series
from ichfast.evaluation.bootstrap import PERCENTILES, mean_interval
from ichfast.evaluation.cases import choose_cases
from ichfast.evaluation.evaluation import evaluate
from ichfast.evaluation.levels import LEVELS, split_levels
from ichfast.evaluation.metrics import accuracy, prevalence_loss, weighted_log_loss
from ichfast.evaluation.predictions import (
    BAG_COLUMNS,
    LABEL_COLUMNS,
    labels_NK,
    probs_NK,
    read_predictions,
    write_predictions,
)
from ichfast.evaluation.results import compute_results
from ichfast.evaluation.scoretable import format_evaluation
from ichfast.labels import CLASSES
from ichfast.store.tables import BAG_LABELS
from tests.evaluation.repeated_slices import repeated, resample
from tests.evaluation.test_evaluation import make_table, scores_of

WEIGHTS = (2, 1, 1, 1, 1, 1)
Floats = npt.NDArray[np.float64]


def with_gaps(seed: int = 1, share: float = 0.4) -> pd.DataFrame:
    """A table of which each label is missing or not by itself, and epidural always."""
    table = make_table()
    labels = labels_NK(table)
    labels[np.random.default_rng(seed).random(labels.shape) < share] = np.nan
    labels[:, 1] = np.nan
    table[list(LABEL_COLUMNS)] = labels
    return table


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return with_gaps()


def test_class_scores_agree_with_scikit_learn_on_the_known_slices(
    table: pd.DataFrame,
) -> None:
    evaluation = evaluate(table)
    for k, name in enumerate(CLASSES):
        known = table[table[f"label_{name}"].notna()]
        y, p = labels_NK(known)[:, k], probs_NK(known)[:, k]
        if name == "epidural":
            assert evaluation.first.classes[name] is None
            continue
        scores = scores_of(evaluation, name)
        assert (scores.count, scores.positives) == (len(known), y.sum())
        expected = {
            "auc": sklearn_metrics.roc_auc_score(y, p),
            "average_precision": sklearn_metrics.average_precision_score(y, p),
            "brier": sklearn_metrics.brier_score_loss(y, p),
            "log_loss": sklearn_metrics.log_loss(y, p, labels=[0, 1]),
            "prevalence": y.mean(),
            "prevalence_log_loss": sklearn_metrics.log_loss(
                y, np.full_like(p, y.mean()), labels=[0, 1]
            ),
        }
        found = {field: getattr(scores, field) for field in expected}
        assert found == pytest.approx(expected, abs=1e-12)
    assert evaluation.first.unlabelled_classes == ["epidural"]


def test_the_figures_of_all_classes_are_means_over_the_known_labels(
    table: pd.DataFrame,
) -> None:
    probs, labels = probs_NK(table), labels_NK(table)
    share_K = [np.nanmean(labels[:, k]) if k != 1 else 0.0 for k in range(6)]
    sums = np.zeros((2, 2))
    right = known = 0
    for n, k in np.argwhere(~np.isnan(labels)):
        for column, p in enumerate((probs[n, k], share_K[k])):
            loss = -np.log(p if labels[n, k] else 1 - p)
            sums[column] += WEIGHTS[k] * loss, WEIGHTS[k]
        right += (probs[n, k] > 0.5) == (labels[n, k] == 1)
        known += 1
    expected = sums[:, 0] / sums[:, 1]
    level = evaluate(table).first
    assert level.weighted_log_loss == pytest.approx(expected[0], abs=1e-12)
    assert level.prevalence_loss == pytest.approx(expected[1], abs=1e-12)
    assert level.accuracy == pytest.approx(right / known, abs=1e-12)
    found = weighted_log_loss(probs, labels), prevalence_loss(labels)
    assert found == pytest.approx(expected, abs=1e-12)
    assert accuracy(probs, labels) == level.accuracy


def test_the_interval_of_a_weighted_mean_is_that_of_repeated_slices() -> None:
    rng = np.random.default_rng(2)
    weight_N = np.where(rng.random(131) < 0.5, 0.0, rng.random(131))
    values_N = rng.random(131)
    drawn = resample()
    means = [
        np.average(values, weights=weights)
        for values, weights in repeated(drawn, values_N, weight_N)
        if weights.sum() > 0
    ]
    found = mean_interval(weight_N * values_N, weight_N, drawn)
    assert found is not None
    np.testing.assert_allclose(found, np.percentile(means, PERCENTILES), atol=1e-12)


def test_intervals_of_a_class_do_not_depend_on_slices_without_its_label(
    table: pd.DataFrame,
) -> None:
    other = table.copy()
    is_missing = other["label_subdural"].isna()
    other.loc[is_missing, "subdural"] = 1 - other.loc[is_missing, "subdural"]
    found, expected = (
        scores_of(evaluate(each, replicates=50), "subdural") for each in (other, table)
    )
    assert found == expected
    assert found.intervals["auc"] is not None
    known = table[~is_missing]
    assert known["patient"].nunique() == table["patient"].nunique()
    assert scores_of(evaluate(known, replicates=50), "subdural") == expected


def test_a_class_known_of_one_patient_has_no_interval() -> None:
    table = make_table()
    table.loc[14:, "label_any"] = np.nan
    scores = scores_of(evaluate(table, replicates=50), "any")
    assert scores.auc is not None
    assert scores.intervals["auc"] is None


def test_a_study_has_the_label_of_its_slices_only_if_all_are_known() -> None:
    table = make_table(21)
    table[list(LABEL_COLUMNS)] = 0.0
    table.loc[3, "label_subdural"] = np.nan  # the first study
    table.loc[8, "label_subdural"] = 1.0  # the second, with a gap
    table.loc[9, "label_subdural"] = np.nan
    table.loc[15, "label_any"] = 1.0  # the third
    study = split_levels(table).parts["study"]
    np.testing.assert_array_equal(study.labels_NK[:, 5], [np.nan, np.nan, 0.0])
    np.testing.assert_array_equal(study.labels_NK[:, 0], [0.0, 0.0, 1.0])
    patient = split_levels(table).parts["patient"]
    np.testing.assert_array_equal(patient.labels_NK[:, 5], [np.nan, 0.0])
    np.testing.assert_array_equal(patient.labels_NK[:, 0], [0.0, 1.0])


def test_slices_without_labels_count_in_the_probability_of_their_study() -> None:
    table = make_table(14).assign(label_any=[1.0] + 12 * [np.nan] + [1.0])
    table.loc[4, "any"] = 0.999
    study = split_levels(table).parts["study"]
    assert study.probs_NK[0, 0] == 0.999


def of_studies(table: pd.DataFrame, bag: str = "study") -> pd.DataFrame:
    """The table with the labels of its slices moved to their study or series."""
    highest = table.groupby(bag)[list(LABEL_COLUMNS)].transform("max")
    moved = table.assign(**dict.fromkeys(LABEL_COLUMNS, np.nan))
    moved[list(BAG_COLUMNS)] = np.nan
    moved[list(BAG_LABELS[bag])] = highest
    return moved


def test_labels_of_studies_give_the_figures_of_their_slices_labels() -> None:
    table = make_table()
    evaluation, expected = evaluate(of_studies(table)), evaluate(table)
    assert list(evaluation.levels) == ["study", "patient"]
    assert evaluation.levels["study"] == expected.levels["study"]
    assert evaluation.levels["patient"] == expected.levels["patient"]
    assert evaluation.to_json()["level"] == "study"


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_alone_has_the_figures_it_has_beside_others(level: str) -> None:
    table = make_table()
    found = evaluate(table, replicates=20, level=level)
    assert list(found.levels) == [level]
    if level != "series":
        assert found.first == evaluate(table, replicates=20).levels[level]
    text = format_evaluation(found).splitlines()
    assert text[0].startswith(
        f"{found.first.count:,} {'s' if level[0] == 's' else 'p'}"
    )
    assert sum(line.startswith("loss by") for line in text) == 1


def test_series_are_judged_by_their_own_labels() -> None:
    table = make_table().assign(study="one study", patient="P")
    series = evaluate(of_studies(table, "series"), level="series")
    assert series.first.count == table["series"].nunique()
    assert series.first == evaluate(table, level="series").first


def test_the_own_label_of_a_study_counts_more_than_those_of_its_slices() -> None:
    table = make_table(14)
    table[list(LABEL_COLUMNS)] = 0.0
    table[list(BAG_LABELS["study"])] = np.nan
    table.loc[:6, "study_any"] = 1.0
    parts = split_levels(table).parts
    assert parts["study"].labels_NK[:, 0].tolist() == [1.0, 0.0]
    assert parts["patient"].labels_NK[:, 0].tolist() == [1.0]
    assert (parts["slice"].labels_NK[:, 0] == 0.0).all()


def test_rows_that_disagree_about_their_study_are_refused() -> None:
    table = of_studies(make_table(14))
    column = table["study_subdural"].to_numpy(np.float64, copy=True)
    for label in (np.nan, 1.0 - column[3]):
        column[3] = label
        with pytest.raises(PredictionError, match=r"1 labels study_\.\.\. differ from"):
            evaluate(table.assign(study_subdural=column))


def test_a_level_without_labels_is_refused() -> None:
    with pytest.raises(PredictionError, match=r"none .* has a label by slice, so"):
        evaluate(of_studies(make_table()), level="slice")


def test_results_are_by_study_where_no_slice_has_a_label() -> None:
    table = of_studies(make_table())
    results = compute_results(table, sensitivity=0.9)
    assert list(results.evaluation.levels) == ["study", "patient"]
    assert len(results.rows) == results.evaluation.first.count == results.num_studies
    rows = results.rows.set_index(["patient", "study"])
    by_study = table.groupby(["patient", "study"])
    highest = by_study[list(CLASSES)].max().loc[rows.index]
    pd.testing.assert_frame_equal(rows[list(CLASSES)], highest)
    shown = table.set_index("slice_id").loc[rows["slice_id"], "any"].to_numpy()
    np.testing.assert_array_equal(shown, rows["any"])
    own = by_study["study_subdural"].first().loc[rows.index]
    assert rows["label_subdural"].tolist() == own.tolist()


def test_patients_without_labels_change_nothing() -> None:
    table = make_table(42)
    table.loc[:13, list(LABEL_COLUMNS)] = np.nan
    found, expected = (
        evaluate(each, replicates=30) for each in (table, table.iloc[14:])
    )
    assert found.levels == expected.levels
    assert (found.unlabelled, expected.unlabelled) == (14, 0)


def test_text_and_json_show_the_counts_and_no_label(table: pd.DataFrame) -> None:
    evaluation = evaluate(table, replicates=10)
    text = format_evaluation(evaluation).splitlines()
    assert "no label of epidural: loss and accuracy are of the others" in text
    counts = next(line for line in text if line.startswith("labelled")).split()[1:]
    expected = [f"{table[name].notna().sum()}" for name in LABEL_COLUMNS]
    assert counts == ["-" if count == "0" else count for count in expected]
    parsed = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert parsed["slice"]["classes"]["epidural"] is None
    assert parsed["slice"]["classes"]["any"]["count"] == int(expected[0])


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npz"])
def test_missing_labels_of_slices_and_studies_come_back(
    tmp_path: Path, table: pd.DataFrame, suffix: str
) -> None:
    mixed = of_studies(with_gaps())
    mixed[list(LABEL_COLUMNS)] = table[list(LABEL_COLUMNS)]
    for name, wanted in (("slices", table), ("studies", mixed)):
        path = tmp_path / f"{name}{suffix}"
        write_predictions(path, wanted)
        found = read_predictions(path)
        assert list(found) == list(wanted)
        np.testing.assert_array_equal(labels_NK(found), labels_NK(wanted))
        found_scores, wanted_scores = (evaluate(each) for each in (found, wanted))
        assert found_scores.levels.keys() == wanted_scores.levels.keys()
        bags = [name for name in BAG_COLUMNS if name in wanted]
        np.testing.assert_array_equal(found[bags], wanted[bags])


def test_labels_of_studies_are_checked(tmp_path: Path) -> None:
    table = of_studies(make_table())
    write_predictions(tmp_path / "half.csv", table.drop(columns="study_subdural"))
    with pytest.raises(
        PredictionError, match="lacks the columns study_subdural; write"
    ):
        read_predictions(tmp_path / "half.csv")
    write_predictions(tmp_path / "two.csv", table.assign(series_any=2.0))
    with pytest.raises(
        PredictionError, match=r"column series_any that are not 0 and 1"
    ):
        read_predictions(tmp_path / "two.csv")


def test_the_figures_of_a_report_take_the_known_labels(table: pd.DataFrame) -> None:
    results = compute_results(table, sensitivity=0.9)
    assert "epidural" not in results.curves
    assert "epidural" not in results.points
    for name, point in results.points.items():
        num_known = table[f"label_{name}"].notna().sum()
        shown = (point.found, point.missed, point.false_alarms, point.left_alone)
        assert sum(shown) == num_known
    assert {group.class_name for group in choose_cases(results.rows)} == {
        name for name in CLASSES if name != "epidural"
    }
    for group in choose_cases(results.rows):
        assert group.rows[f"label_{group.class_name}"].notna().all()
    along = along_series(table)
    in_series = table.iloc[:210]  # the last series has one slice
    assert along.count_Q.sum() == in_series["label_any"].notna().sum()
    assert np.isfinite(along.loss_Q[along.count_Q > 0]).all()


def test_means_along_a_series_take_the_known_labels() -> None:
    table = make_table(7).assign(series="one", position_mm=[0, 0, 0, 0, 9, 9, 9])
    table[list(LABEL_COLUMNS)] = np.nan
    table.loc[[0, 1, 4], "label_any"] = [1.0, 0.0, 1.0]
    table["any"] = [0.2, 0.4, 0.9, 0.9, 0.7, 0.1, 0.1]
    along = along_series(table)
    assert along.count_Q[[0, -1]].tolist() == [2, 1]
    np.testing.assert_allclose(along.frequency_Q[[0, -1]], [0.5, 1.0])
    np.testing.assert_allclose(along.prob_Q[[0, -1]], [0.3, 0.7])
    expected = [-(np.log(0.2) + np.log(0.6)) / 2, -np.log(0.7)]
    np.testing.assert_allclose(along.loss_Q[[0, -1]], expected)
