"""Runs are compared with the published experiments as text, csv and chart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ichfast.errors import CheckpointError, PredictionError
from ichfast.recipes.reference import PUBLISHED
from ichfast.recipes.team_results import TEAM_RESULTS
from ichfast.report.charts.comparison import comparison_figure, draw_comparison
from ichfast.report.comparison import (
    Row,
    compare_runs,
    format_comparison,
    write_comparison,
)
from ichfast.runs.record import RECORD
from ichfast.series.record import BACKBONES
from ichfast.training.history import METRICS, read_history
from tests.conftest import TINY_ARCH
from tests.runs.trainedruns import write_folds, write_run
from tests.series.seriesruns import CONFIG, train, write_features


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
        assert (row.published_by, row.is_ours) == ("reference", False)
        assert row.folds == "slice"
        assert row.valid_loss == published.valid_loss
        assert row.train_loss_smooth == published.train_loss
        assert row.leaderboard_tta == published.leaderboard_tta
    mixup = rows[list(PUBLISHED).index("exp-10-mixup")]
    assert (mixup.network, mixup.addition) == ("xresnet50-attn", "mixup")
    assert mixup.epochs == 55


def test_a_run_shows_its_best_epoch(rows: list[Row]) -> None:
    mine, begun = rows[-2:]
    assert mine.is_ours
    assert (mine.name, mine.network, mine.size) == ("mine", TINY_ARCH, 32)
    assert (mine.valid_loss, mine.accuracy, mine.epochs) == (0.4, 0.9, 2)
    assert (mine.published_by, mine.measured_on) == ("", "own validation")
    assert mine.weighted_loss == pytest.approx(0.41)
    assert begun.weighted_loss is None
    assert mine.train_loss_smooth == pytest.approx(0.399)
    assert mine.images_per_s == 10.5
    assert mine.leaderboard is None
    assert "brain+subdural+bone" in mine.addition
    assert "slices" not in mine.addition
    assert "3 slices" in rows[-1].addition
    assert (begun.valid_loss, begun.epochs, begun.folds) == (None, 0, "slice")


@pytest.mark.slow
def test_a_series_run_is_its_head_over_its_backbone(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    runs = write_folds(tmp_path / "runs", tiny_store_path)
    features = write_features(tmp_path / "features", tiny_store_path, runs)
    train(features, tmp_path / "head")
    (row,) = compare_runs([tmp_path / "head"])[-1:]
    history = read_history(tmp_path / "head")
    best = history.iloc[int(history["valid_weighted_log_loss"].argmin())]
    assert row.is_ours
    assert (row.name, row.network) == ("head", f"gru over {TINY_ARCH}")
    assert (row.size, row.folds, row.epochs) == (32, "patient", CONFIG.epochs)
    assert row.addition == "series head, brain+subdural+bone"
    assert row.weighted_loss == best["valid_weighted_log_loss"]
    assert row.valid_loss == best["valid_loss"]
    assert row.images_per_s is None
    (tmp_path / "head" / METRICS).unlink()
    (row,) = compare_runs([tmp_path / "head"])[-1:]
    assert (row.weighted_loss, row.valid_loss, row.epochs) == (None, None, 0)
    (tmp_path / "head" / BACKBONES / "0" / RECORD).unlink()
    with pytest.raises(CheckpointError, match=r"no run in .*backbones.0"):
        compare_runs([tmp_path / "head"])


def test_the_text_separates_their_rows_from_ours(
    rows: list[Row],
) -> None:
    lines = format_comparison(rows).splitlines()
    assert lines[0].split()[:4] == ["name", "network", "addition", "size"]
    assert set(lines[1 + len(PUBLISHED)]) == {"-"}
    begun = next(line for line in lines if line.startswith("begun"))
    assert begun.split()[-9:] == ["-", "-", "-", "-", "-", "-", "0", "-", "-"]
    assert lines.index(begun) == len(PUBLISHED) + 3
    assert any("0.05493" in line and "0.095" in line for line in lines)


def test_results_of_other_teams_stand_apart_with_their_slices(rows: list[Row]) -> None:
    theirs = rows[len(PUBLISHED) : -2]
    for row, result in zip(theirs, TEAM_RESULTS, strict=True):
        assert (row.name, row.weighted_loss) == (result.name, result.weighted_loss)
        assert (row.published_by, row.is_ours) == ("another team", False)
        assert (row.valid_loss, row.accuracy, row.leaderboard) == (None, None, None)
        assert (row.weighted_loss is None) == (row.auc_any is not None)
    text = format_comparison(rows)
    ours, _, others = text.partition(
        "What other teams published, on other slices than those above:"
    )
    assert "RSNA" not in ours
    lines = [" ".join(line.split()) for line in others.splitlines() if line]
    assert lines[0] == ("name network addition size weighted AUC of any measured on")
    assert lines[1] == (
        "RSNA 2nd place ResNeXt101 2 BiLSTMs over features 480 0.04607 - private "
        "leaderboard"
    )
    assert lines[2].endswith("384 0.05780 - own validation")
    assert lines[-1].endswith("512 - 0.9828 own held-out patients")
    assert len(lines) == len(TEAM_RESULTS) + 1


def test_the_csv_holds_every_field(rows: list[Row], tmp_path: Path) -> None:
    write_comparison(rows, tmp_path / "new" / "runs.csv")
    table = pd.read_csv(tmp_path / "new" / "runs.csv")
    assert table["name"].tolist() == [row.name for row in rows]
    num_reference, num_teams = len(PUBLISHED), len(TEAM_RESULTS)
    expected = ["reference"] * num_reference + ["another team"] * num_teams
    assert table["published_by"].dropna().tolist() == expected
    known = [True] * num_reference + [False] * num_teams + [True, False]
    assert table["valid_loss"].notna().tolist() == known
    text = (tmp_path / "new" / "runs.csv").read_text()
    assert ",ResNeXt101,2 BiLSTMs over features,480,,," in text


def test_a_run_named_like_a_formula_is_none_in_the_csv(
    rows: list[Row], tmp_path: Path
) -> None:
    write_comparison([replace(rows[-1], name="=1+1")], tmp_path / "runs.csv")
    assert pd.read_csv(tmp_path / "runs.csv")["name"].tolist() == ["'=1+1"]


def test_the_picture_has_a_bar_for_every_row(rows: list[Row], tmp_path: Path) -> None:
    figure = comparison_figure(rows)
    num_losses = sum(result.weighted_loss is not None for result in TEAM_RESULTS)
    bars = [len(axes.patches) for axes in figure.axes]
    assert bars == [len(PUBLISHED) + 2] * 3 + [num_losses + 1]
    labels = [
        [label.get_text() for label in figure.axes[number].get_yticklabels()]
        for number in (0, 3)
    ]
    assert labels[0][-2] == "mine, 32 px, patient folds"
    assert labels[1][0] == (
        "RSNA 2nd place, 480 px, 2 BiLSTMs over features (private leaderboard)"
    )
    assert labels[1][-1] == "mine, 32 px (own validation)"
    assert figure.axes[3].texts[0].get_text() == "  0.04607"
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
