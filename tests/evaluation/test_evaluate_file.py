"""The figures of a predictions file are written next to it, with a checksum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ichfast.evaluation.evaluate_file import METRICS_FILE, evaluate_file
from ichfast.evaluation.predictions import write_predictions
from ichfast.system.checksums import ChecksumError, check_document, with_checksum
from tests.evaluation.foreign_tables import right_table
from tests.mutations import mutations


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """The figures of the right table."""
    write_predictions(tmp_path / "p.csv", right_table())
    result = evaluate_file(tmp_path / "p.csv", replicates=0, allow_leak=False)
    path = tmp_path / METRICS_FILE
    assert path.read_text("utf-8") == with_checksum(result.to_json())
    return path


def test_every_figure_is_written_with_a_checksum(metrics: Path) -> None:
    content = metrics.read_bytes()
    figures = json.loads(content)
    check_document(content, figures)
    assert figures["slice"]["count"] == 4
    assert next(iter(figures)) == "weighted_log_loss"


def test_every_mutation_of_the_figures_is_noticed(metrics: Path) -> None:
    for content in mutations(metrics.read_bytes(), seed=3):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  json raises it too
            check_document(content, json.loads(content))
        is_json = not isinstance(caught.value, json.JSONDecodeError | UnicodeError)
        assert is_json == isinstance(caught.value, ChecksumError)
