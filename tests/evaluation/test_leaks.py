"""Patients that a run trained on are counted, and refused."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.evaluation.leaks import check_leaks
from tests.evaluation.test_evaluation import make_table


def with_trained_on(values: list[object]) -> pd.DataFrame:
    """Seven slices a study, two studies a patient; a value a patient."""
    table = make_table(14 * len(values))
    trained_N = pd.array(np.repeat(np.array(values, dtype=object), 14), dtype="boolean")
    return table.assign(trained_on=trained_N)


def test_leaks_are_counted_and_refused() -> None:
    table = with_trained_on([True, False, pd.NA, True])
    with pytest.raises(PredictionError, match=r"28 of 56 slices are of 2 .*allow-leak"):
        check_leaks(table, allow=False)
    found = check_leaks(table, allow=True)
    assert found == {"slices": 28, "patients": 2, "unknown": 14}


def test_unknown_training_patients_are_refused_like_known_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = with_trained_on([False, pd.NA])
    with pytest.raises(PredictionError, match=r"not known of 14 of 28 .*--allow-leak"):
        check_leaks(table, allow=False)
    with caplog.at_level(logging.WARNING):
        found = check_leaks(table, allow=True)
    assert found == {"slices": 0, "patients": 0, "unknown": 14}
    assert "of 14 it is not known" in caplog.text


def test_new_patients_pass_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    found = check_leaks(with_trained_on([False, False]), allow=False)
    assert found == {"slices": 0, "patients": 0, "unknown": 0}
    assert not caplog.text
