"""A model card: what an exported model is, learned from, and must not be used for."""

from __future__ import annotations

from pathlib import Path

from ichfast.export.module import COLUMNS, ROWS
from ichfast.labels import CLASSES
from ichfast.runs.trained import TrainedRun
from ichfast.training.history import read_history


def card_path(model_path: Path) -> Path:
    """Where the card of a model lies: beside it."""
    return model_path.with_suffix(".card.md")


def format_card(run: TrainedRun, model_path: Path) -> str:
    """Write the card as Markdown. It holds no path but the model's name, and no id.

    Raises:
        CheckpointError: the run has no finished epoch.
    """
    record, recipe = run.record, run.record.recipe
    counts, data, folds = record.counts, recipe.data, recipe.folds
    history = read_history(run.path)
    best = history.iloc[int(history["valid_loss"].argmin())]
    three = ", 3" if data.neighbours else ""
    shares = (
        "whole patients: none is on both sides"
        if folds.kind == "patient"
        else "single slices: patients are on both sides, so the figures below look "
        "better than they are"
    )
    neighbours = (
        "\nThe three slices are the one before in the series, the slice itself, and "
        "the one after; at an end of the series the slice stands in.\n"
        if data.neighbours
        else ""
    )
    return f"""# {model_path.name}

**Not a medical device.** Not tested or cleared for the care of patients. It was made
for research and must not be used to diagnose, to rule out or to rank patients.

## What it does

Gives the probability of intracranial hemorrhage and its five subtypes for an axial
slice of head CT without contrast agent.

* Input: CT numbers in HU, float32, shape (slices{three}, {ROWS}, {COLUMNS}).
  Air is -1000.
* Output: probabilities, float32, shape (slices, {len(CLASSES)}):
  {", ".join(CLASSES)}.
* Inside: resizing to {data.size} pixels, windows {", ".join(data.windows)},
  normalisation, and the network {recipe.model.arch}.
{neighbours}
## What it learned from

* Recipe {recipe.name}; {counts["train_slices"]:,} slices of
  {counts["train_patients"]:,} patients trained it, {counts["valid_slices"]:,} slices of
  {counts["valid_patients"]:,} patients validated it.
* Fold {folds.fold} of {folds.num_folds} validated (seed {folds.seed}), dealt by
  {shares}.
* Best of {len(history)} epochs: epoch {int(best["epoch"]) + 1}.

## How good it was there

| on the validation fold | |
|---|---|
| weighted log loss (any counts 2 of 7) | {best["valid_weighted_log_loss"]:.4f} |
| log loss | {best["valid_loss"]:.4f} |
| accuracy at 0.5 over all six answers | {best["valid_accuracy"]:.4f} |

The epoch was chosen by these same slices. Most slices are negative, so an accuracy
near 0.94 is what calling every slice healthy scores on the RSNA set. Other scanners,
protocols and patients were not tried.

## What made it

{_versions(run)}
"""


def _versions(run: TrainedRun) -> str:
    environment = run.record.environment
    versions = environment.get("versions", {})
    shown = [f"{name} {version}" for name, version in versions.items()]
    return ", ".join([*shown, f"commit {environment.get('commit') or 'unknown'}"])
