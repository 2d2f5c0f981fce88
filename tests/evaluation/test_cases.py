"""The slices chosen to look at are the worst and the best of each class."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ichfast.evaluation.cases import CASES_A_GROUP, CaseGroup, choose_cases
from ichfast.labels import CLASSES
from tests.evaluation.test_evaluation import make_table


def groups_of(table: pd.DataFrame) -> dict[tuple[str, bool], CaseGroup]:
    return {(group.class_name, group.is_worst): group for group in choose_cases(table)}


def test_each_class_has_its_worst_then_its_best() -> None:
    expected = [(name, is_worst) for name in CLASSES for is_worst in (True, False)]
    assert list(groups_of(make_table())) == expected


def test_the_widest_gap_comes_first_with_any_label() -> None:
    table = make_table().astype({"subdural": "float64"})
    healthy = table.index[table["label_subdural"] == 0][5]
    sick = table.index[table["label_subdural"] == 1][5]
    table.loc[healthy, "subdural"] = 1 - 1e-9
    table.loc[sick, "subdural"] = 1e-6
    worst = groups_of(table)["subdural", True].rows
    assert worst.index[:2].tolist() == [healthy, sick]
    gaps = np.abs(worst["label_subdural"] - worst["subdural"])
    assert (np.diff(gaps) <= 0).all()


def test_the_best_are_labelled_and_not_among_the_worst() -> None:
    groups = groups_of(make_table())
    for name in CLASSES:
        worst, best = groups[name, True].rows, groups[name, False].rows
        assert (best[f"label_{name}"] == 1).all()
        assert best[name].is_monotonic_decreasing
        assert not set(best["slice_id"]) & set(worst["slice_id"])


def test_a_study_gives_one_slice_to_a_group() -> None:
    for group in choose_cases(make_table()):
        assert group.rows["study"].is_unique
        assert len(group.rows) <= CASES_A_GROUP
    for group in choose_cases(make_table().assign(study="the same")):
        assert len(group.rows) == 1


def test_a_class_without_positives_has_no_best_slices() -> None:
    groups = groups_of(make_table().assign(label_epidural=0.0))
    assert ("epidural", True) in groups
    assert ("epidural", False) not in groups
