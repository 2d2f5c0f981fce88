"""The disagreement of runs is compared with their error, where both are known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ichfast.evaluation.disagreement import NUM_PARTS, disagreement
from ichfast.evaluation.predictions import ENTROPY_COLUMNS, LABEL_COLUMNS, STD_COLUMNS
from ichfast.labels import CLASSES
from tests.evaluation.test_evaluation import make_table


def wrong_where_uncertain() -> pd.DataFrame:
    """200 slices in any order; the error of each is 0.001 times its rank, std half."""
    table = make_table(200)
    rank = np.random.default_rng(2).permutation(200)
    for name in CLASSES:
        label = table[f"label_{name}"]
        table[name] = np.abs(label - 0.001 * rank)
    table[list(STD_COLUMNS)] = np.repeat(0.0005 * rank[:, np.newaxis], 6, axis=1)
    return table


def test_parts_go_from_the_least_disagreement_to_the_most() -> None:
    found = disagreement(wrong_where_uncertain())
    assert found is not None
    expected = 0.001 * np.arange(200).reshape(NUM_PARTS, 20).mean(axis=1)
    for k in range(len(CLASSES)):
        np.testing.assert_allclose(found.error_KQ[k], expected, atol=1e-12)
        np.testing.assert_allclose(found.std_KQ[k], expected / 2, atol=1e-12)
    left = [0.001 * np.arange(20 * n).mean() for n in range(1, NUM_PARTS + 1)]
    np.testing.assert_allclose(found.rest["standard deviation"], left, atol=1e-12)
    np.testing.assert_allclose(found.kept_Q, np.linspace(0.1, 1, NUM_PARTS))
    assert list(found.rest) == ["standard deviation"]


def test_entropy_is_a_second_measure() -> None:
    table = wrong_where_uncertain()
    table[list(ENTROPY_COLUMNS)] = 1 - 2 * table[list(STD_COLUMNS)].to_numpy()
    found = disagreement(table)
    assert found is not None
    # It says the reverse here, so that the slices left are the worst.
    by_entropy, by_std = found.rest["entropy"], found.rest["standard deviation"]
    assert (by_entropy[:-1] > by_std[:-1]).all()
    np.testing.assert_allclose(by_entropy[-1], by_std[-1])


def test_slices_of_one_run_or_without_a_label_do_not_count() -> None:
    table = wrong_where_uncertain()
    more = pd.concat([table, table], ignore_index=True)
    more.loc[200:299, list(STD_COLUMNS)] = np.nan
    more.loc[300:, list(LABEL_COLUMNS)] = np.nan
    found, expected = disagreement(more), disagreement(table)
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.error_KQ, expected.error_KQ)
    np.testing.assert_array_equal(found.std_KQ, expected.std_KQ)


def test_a_class_without_labels_has_no_line() -> None:
    found = disagreement(wrong_where_uncertain().assign(label_epidural=np.nan))
    assert found is not None
    is_missing_K = np.logical_and.reduce(np.isnan(found.error_KQ), axis=1)
    assert [name for name, gone in zip(CLASSES, is_missing_K, strict=True) if gone] == [
        "epidural"
    ]


def test_without_several_runs_there_is_nothing_to_compare() -> None:
    assert disagreement(make_table()) is None
    alone = wrong_where_uncertain().assign(**dict.fromkeys(STD_COLUMNS, np.nan))
    assert disagreement(alone) is None
    assert disagreement(wrong_where_uncertain().iloc[: NUM_PARTS - 1]) is None
