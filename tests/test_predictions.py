"""The predictions table survives both its forms, and is checked when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ichfast.errors import PredictionError
from ichfast.labels import CLASSES
from ichfast.predictions import (
    COLUMNS,
    LABEL_COLUMNS,
    labels_NK,
    probs_NK,
    read_predictions,
    write_predictions,
)


def a_table() -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "slice_id": ["0012", "b"],
            "series": ["r", "r"],
            "study": ["s", "s"],
            "patient": ["p", "p"],
            "position_mm": [1.5, np.nan],
            "fold": [0, -1],
        }
    )
    table[list(CLASSES)] = np.linspace(0.1, 0.9, 12).reshape(2, 6)
    table[list(LABEL_COLUMNS)] = [[1, 0, 0, 0, 0, 1], [np.nan] * 6]
    return table


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"predictions{suffix}"
    write_predictions(path, a_table())
    found = read_predictions(path)
    assert tuple(found.columns) == COLUMNS
    assert found["slice_id"].tolist() == ["0012", "b"]
    np.testing.assert_allclose(probs_NK(found), probs_NK(a_table()), rtol=1e-8)
    np.testing.assert_array_equal(labels_NK(found), labels_NK(a_table()))


def test_what_is_no_predictions_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"\.parquet or \.csv, got 'p.txt'"):
        write_predictions(tmp_path / "p.txt", a_table())
    with pytest.raises(PredictionError, match=r"no predictions at .*ichfast predict"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "p.csv").write_text("slice_id,any\na,0.5\n")
    with pytest.raises(PredictionError, match="lacks the columns series, study"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.parquet").write_bytes(b"not parquet")
    with pytest.raises(PredictionError, match="damaged or not a table"):
        read_predictions(tmp_path / "p.parquet")
