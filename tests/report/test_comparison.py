"""Runs are compared with the published experiments as text, csv and chart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ichfast.errors import CheckpointError, PredictionError
from ichfast.recipes.reference import PUBLISHED
from ichfast.report.charts.comparison import comparison_figure, draw_comparison
from ichfast.report.comparison import (
    Row,
    compare_runs,
    format_comparison,
    write_comparison,
)
from ichfast.training.history import METRICS
from tests.conftest import TINY_ARCH
from tests.runs.trainedruns import write_run


@pytest.fixture(scope="module")
def rows(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The published experiments, a run, and a run without a finished epoch."""
    folder = tmp_path_factory.mktemp("runs")
    finished = write_run(folder / "mine", tiny_store_path)
    begun = write_run(
        folder / "begun", tiny_store_path, "folds.kind=slice", "data.neighbours=1"
    )
    (begun / METRICS).unlink()
    return compare_runs([finished, begun])


def test_the_references_rows_come_first_as_published(rows: list[Row]) -> None:
    for row, (name, published) in zip(rows, PUBLISHED.items(), strict=False):
        assert row.name == name
        assert not row.is_ours
        assert row.folds == "slice"
        assert row.valid_loss == published.valid_loss
        assert row.train_loss_smooth == published.train_loss
        assert row.leaderboard_tta == published.leaderboard_tta
    mixup = rows[list(PUBLISHED).index("exp-10-mixup")]
    assert (mixup.network, mixup.addition) == ("xresnet50-attn", "mixup")
    assert mixup.epochs == 55


def test_a_run_shows_its_best_epoch(rows: list[Row]) -> None:
    mine, begun = rows[len(PUBLISHED) :]
    assert mine.is_ours
    assert (mine.name, mine.network, mine.size) == ("mine", TINY_ARCH, 32)
    assert (mine.valid_loss, mine.accuracy, mine.epochs) == (0.4, 0.9, 2)
    assert mine.train_loss_smooth == pytest.approx(0.399)
    assert mine.images_per_s == 10.5
    assert mine.leaderboard is None
    assert "brain+subdural+bone" in mine.addition
    assert "slices" not in mine.addition
    assert "3 slices" in rows[-1].addition
    assert (begun.valid_loss, begun.epochs, begun.folds) == (None, 0, "slice")


def test_the_text_separates_their_rows_from_ours(
    rows: list[Row],
) -> None:
    lines = format_comparison(rows).splitlines()
    assert lines[0].split()[:4] == ["name", "network", "addition", "size"]
    assert set(lines[1 + len(PUBLISHED)]) == {"-"}
    begun = next(line for line in lines if line.startswith("begun"))
    assert begun.split()[-8:] == ["-", "-", "-", "-", "-", "0", "-", "-"]
    assert any("0.05493" in line and "0.095" in line for line in lines)


def test_the_csv_holds_every_field(rows: list[Row], tmp_path: Path) -> None:
    write_comparison(rows, tmp_path / "new" / "runs.csv")
    table = pd.read_csv(tmp_path / "new" / "runs.csv")
    assert table["name"].tolist() == [row.name for row in rows]
    assert table["is_ours"].sum() == 2
    assert table["valid_loss"].isna().tolist() == [False] * 7 + [True]


def test_a_run_named_like_a_formula_is_none_in_the_csv(
    rows: list[Row], tmp_path: Path
) -> None:
    write_comparison([replace(rows[-1], name="=1+1")], tmp_path / "runs.csv")
    assert pd.read_csv(tmp_path / "runs.csv")["name"].tolist() == ["'=1+1"]


def test_the_picture_has_a_bar_for_every_row(rows: list[Row], tmp_path: Path) -> None:
    figure = comparison_figure(rows)
    assert [len(axes.patches) for axes in figure.axes] == [len(rows)] * 3
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-2] == "mine, 32 px, patient folds"
    draw_comparison(rows, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_compared_or_written_is_refused(
    rows: list[Row], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no run in"):
        compare_runs([tmp_path])
    with pytest.raises(PredictionError, match=r"\.png file, got 'runs.pdf'"):
        draw_comparison(rows, tmp_path / "runs.pdf")
    (tmp_path / "file").write_text("")
    for write, name in ((write_comparison, "a.csv"), (draw_comparison, "a.png")):
        with pytest.raises(PredictionError, match="cannot write"):
            write(rows, tmp_path / "file" / name)
