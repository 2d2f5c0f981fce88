"""The model card: what a model is, was trained on, and must not be used for."""

from __future__ import annotations

from pathlib import Path

from ichfast.evaluation.calibration import Calibration
from ichfast.evaluation.calibration_table import (
    THRESHOLD_HEADINGS,
    threshold_cells,
    why_unfitted,
)
from ichfast.export.module import COLUMNS, ROWS
from ichfast.labels import CLASSES
from ichfast.runs.record import Environment
from ichfast.runs.trained import TrainedRun
from ichfast.training.history import read_history


def card_path(model_path: Path) -> Path:
    """The path of the card, next to the model: for ``m.onnx``, ``m.onnx.card.md``."""
    return model_path.with_name(f"{model_path.name}.card.md")


def format_card(run: TrainedRun, model_path: Path) -> str:
    """Write the card as Markdown, without paths and ids.

    Args:
        run: the exported run.
        model_path: the exported file, whose name is the title.

    Raises:
        CheckpointError: the run has no finished epoch.
    """
    # Long, since it holds the text of the card.
    record, recipe = run.record, run.record.recipe
    counts, data, folds = record.counts, recipe.data, recipe.folds
    history = read_history(run.path)
    best = history.iloc[int(history["valid_loss"].argmin())]
    depth = f", {data.slab_depth}" if data.neighbours else ""
    shares = {
        "patient": "whole patients: none is on both sides",
        "study": "whole studies: a patient of several studies may be on both sides",
        "slice": "single slices: patients are on both sides, so the figures below look "
        "better than they are",
    }[folds.unit]
    if counts.valid_patients_seen:
        shares += (
            f".\n  The weights that it started from may have been trained on "
            f"{counts.valid_patients_seen:,} of the\n  validation patients, so the "
            "figures below look better than they are"
        )
    bags = (
        "\n* Labels of whole series or studies to train on: "
        f"{_listed(counts.train_bag_labels)}."
        if counts.train_bag_labels
        else ""
    )
    neighbours = (
        f"\nThe {data.slab_depth} slices are a slab: {data.neighbours} below, the "
        f"slice itself and {data.neighbours} above;\nat an end of the series its last "
        "slice repeats.\n"
        if data.neighbours
        else ""
    )
    pixels = (
        "The pixels must be square: before, resample a slice whose PixelSpacing\n  "
        "differs between rows and columns, and fill what is missing with air."
        if data.square_pixels
        else "Every pixel counts as a square, even where PixelSpacing differs."
    )
    return f"""# {model_path.name}

**Not a medical device.** Not tested or cleared for patient care. It was made for
research and must not be used to diagnose, to rule out a disease or to rank patients.

## What it does

Predicts the probability of intracranial hemorrhage and its five subtypes for an axial
slice of non-contrast head CT.

* Input: HU, float32, shape (slices{depth}, {ROWS}, {COLUMNS}).
  Air is -1000. {pixels}
* Output: probabilities, float32, shape (slices, {len(CLASSES)}):
  {", ".join(CLASSES)}.
* Included: resizing to {data.size} pixels, windows {", ".join(data.windows)},
  normalisation, and the network {recipe.model.arch}.
{neighbours}
## What it was trained on

* Recipe {recipe.name}; {counts.train_slices:,} slices of
  {counts.train_patients:,} patients for training,
  {counts.valid_slices:,} slices of {counts.valid_patients:,} patients for
  validation.
* Training slices with a known label: {_listed(counts.train_labels)}.{bags}
* Validated on fold {folds.fold} of {folds.num_folds} (seed {folds.seed}), divided by
  {shares}.
* Best of {len(history)} epochs: epoch {int(best["epoch"]) + 1}.

## How good it was there

| on the validation fold{", without calibration" if record.calibration else ""} | |
|---|---|
| weighted log loss (any counts 2 of 7) | {best["valid_weighted_log_loss"]:.4f} |
| log loss | {best["valid_loss"]:.4f} |
| accuracy at 0.5 over all six classes | {best["valid_accuracy"]:.4f} |

The epoch was chosen on these slices. Most slices are negative: calling every slice
healthy scores an accuracy near 0.94 on the RSNA set. Other scanners, protocols and
patients were not tested.

## Calibration

{format_calibration(record.calibration)}

## What made it

{format_versions(record.environment)}
"""


def format_calibration(calibration: Calibration | None) -> str:
    """The calibration as a table in Markdown."""
    if calibration is None:
        return "Not calibrated: a probability may be too certain, or too uncertain."
    aim = calibration.aim
    rows = [["class", "temperature", "bias", *THRESHOLD_HEADINGS]]
    rows.append(["---"] * len(rows[0]))
    for each in calibration.classes:
        cells = threshold_cells(each.threshold)
        rows.append(
            [each.name, f"{each.temperature:.3f}", f"{each.bias:.3f}"]
            + [f"{figure} ({interval})" for figure, interval in cells]
        )
    kept = "".join(
        f"\n* {each.name} is not calibrated: {why_unfitted(each)}."
        for each in calibration.classes
        if each.unfitted
    )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""The probabilities are calibrated, on {calibration.slices:,} slices of
{calibration.patients:,} patients that it was not trained on. There the weighted log
loss was {calibration.loss_before:.4f} without calibration, and is
{calibration.loss_crossfitted:.4f} with that of other patients. A threshold reaches a
{aim.figure} of {aim.value:g} on these slices; in parentheses are 95% intervals.

{table}
{kept}"""


def _listed(labels: dict[str, int]) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in labels.items())
    return counts or "all six classes of each"


def format_versions(environment: Environment) -> str:
    """The versions that made a model, in one line."""
    shown = [f"{name} {version}" for name, version in environment.versions.items()]
    return ", ".join([*shown, f"commit {environment.commit or 'unknown'}"])
