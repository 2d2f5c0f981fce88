"""The places of slices are relative to the extent of their series."""

from __future__ import annotations

import numpy as np

from ichfast.evaluation.along_series import NUM_PARTS, along_series
from ichfast.evaluation.predictions import LABEL_COLUMNS
from tests.evaluation.test_evaluation import make_table


def test_each_slice_counts_in_its_part_at_any_spacing() -> None:
    table = make_table(14).assign(series=["near"] * 7 + ["far"] * 7)
    table["position_mm"] = [*np.arange(7) * 0.5, *(np.arange(7) * -90.0 + 7)]
    table[list(LABEL_COLUMNS)] = 0.0
    table.loc[[0, 13], "label_any"] = 1.0  # the lowest slice of both
    table["any"] = [*np.linspace(0.9, 0.3, 7), *np.linspace(0.3, 0.9, 7)]
    along = along_series(table)
    assert along.count_Q.sum() == 14
    assert along.count_Q[0] == along.count_Q[-1] == 2
    assert along.frequency_Q[0] == 1.0
    assert np.nansum(along.frequency_Q[1:]) == 0.0
    np.testing.assert_allclose(along.prob_Q[[0, -1]], [0.9, 0.3])
    assert (np.isnan(along.loss_Q) == (along.count_Q == 0)).all()


def test_a_series_of_one_position_has_no_place() -> None:
    table = make_table(7).assign(series="one", position_mm=3.0)
    assert along_series(table).count_Q.tolist() == [0] * NUM_PARTS


def test_a_slice_without_a_position_is_left_out() -> None:
    table = make_table(7).assign(series="one", position_mm=np.arange(7.0))
    table.loc[3, "position_mm"] = np.nan
    assert along_series(table).count_Q.sum() == 6
