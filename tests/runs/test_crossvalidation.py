"""Cross-validation trains each fold and summarizes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.crossvalidation import train_folds
from ichfast.runs.run import TrainReport
from ichfast.training.checkpoint import save_last

RECIPE = resolve_recipe("fast", assignments=["folds.num_folds=3", "folds.fold=2"])


class FakeRun:
    """Trains nothing; records its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, bool]] = []

    def __call__(self, recipe: Recipe, run_dir: Path, *, resume: bool) -> TrainReport:
        fold = recipe.folds.fold
        self.calls.append((fold, run_dir.name, resume))
        return TrainReport(
            run=str(run_dir),
            epochs=1,
            best_epoch=0,
            valid_loss=0.1 * (fold + 1),
            valid_weighted_log_loss=0.2 * (fold + 1),
            prevalence_weighted_log_loss=0.5,
            valid_accuracy=0.9,
            slices_per_s=1.0,
            device="cpu",
        )


def test_each_fold_is_trained_and_all_are_summarized(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun()
    with caplog.at_level("INFO"):
        report = train_folds(RECIPE, tmp_path, run)
    assert run.calls == [(k, f"fold-{k}", False) for k in range(3)]
    assert report.valid_loss == pytest.approx(0.2)
    assert report.valid_weighted_log_loss == pytest.approx(0.4)
    assert report.deviation_weighted_log_loss == pytest.approx(0.2)
    assert [fold.valid_loss for fold in report.folds] == pytest.approx([0.1, 0.2, 0.3])
    assert "3 folds: weighted log loss 0.40000 +- 0.20000" in caplog.text


def test_the_folds_of_a_file_are_trained_also_when_it_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("patient,fold\na,1\nb,4\nc,\n")
    recipe = resolve_recipe("fast", assignments=[f"folds.file={file}"])
    run = FakeRun()
    train_folds(recipe, tmp_path / "runs", run)
    assert [name for _, name, _ in run.calls] == ["fold-1", "fold-4"]
    (tmp_path / "runs" / "fold-1").mkdir()
    file.rename(tmp_path / "runs" / "fold-1" / "folds.csv")
    train_folds(recipe, tmp_path / "runs", run, resume=True)
    assert [fold for fold, _, _ in run.calls] == [1, 4, 1, 4]


def test_resuming_continues_folds_that_have_begun_and_starts_others(
    tmp_path: Path,
) -> None:
    for fold in (0, 1):
        (tmp_path / f"fold-{fold}").mkdir()
        save_last(tmp_path / f"fold-{fold}", {})
    run = FakeRun()
    train_folds(RECIPE, tmp_path, run, resume=True)
    assert [resume for _, _, resume in run.calls] == [True, True, False]
