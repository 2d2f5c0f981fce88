"""The model card of a series run: what it is, and what it must not be used for."""

from __future__ import annotations

from pathlib import Path

from ichfast.export.card import format_calibration, format_versions
from ichfast.export.module import COLUMNS, ROWS
from ichfast.labels import CLASSES
from ichfast.series.folder import SeriesRun
from ichfast.training.history import read_history


def format_series_card(run: SeriesRun, model_path: Path) -> str:
    """Write the card as Markdown, without paths and ids.

    Args:
        run: the exported run.
        model_path: the exported file, whose name is the title.

    Raises:
        CheckpointError: the run has no history.
    """
    # Long, since it holds the text of the card.
    record, backbone = run.record, run.record.features[0]
    counts, config = record.counts, record.series
    history = read_history(run.path)
    best = history.iloc[int(history["valid_weighted_log_loss"].argmin())]
    shares = ", ".join(
        f"{name} {share:g}" for name, share in zip(CLASSES, record.blend, strict=True)
    )
    plural = len(record.features) > 1
    seen = (
        f"\n* A network may have been trained on {counts.valid_patients_seen:,} of the "
        "validation patients\n  before, so the figure below looks better than it is."
        if counts.valid_patients_seen
        else ""
    )
    return f"""# {model_path.name}

**Not a medical device.** Not tested or cleared for patient care. It was made for
research and must not be used to diagnose, to rule out a disease or to rank patients.

## What it does

Predicts the probability of intracranial hemorrhage and its five subtypes for each
axial slice of one series of non-contrast head CT, and for the series.

* Input: HU of one whole series, float32, shape (slices, {ROWS}, {COLUMNS}), from the
  lowest slice to the highest. Air is -1000.
* Output: probabilities of the slices, float32, shape (slices, {len(CLASSES)}), and of
  the series, shape ({len(CLASSES)},): {", ".join(CLASSES)}.
* Included: resizing to {backbone.size} pixels, windows {", ".join(backbone.windows)},
  normalisation, {len(record.features)} network{"s" if plural else ""}
  {backbone.arch}, a series head ({config.kind}), and their blend.
* Of a series of more than {config.max_slices} slices, the head reads {
        config.max_slices
    }.
* Share of the head, by class: {shares}.

## What it was trained on

* The head: {counts.train_slices:,} slices in {counts.train_series:,} series of
  {counts.train_patients:,} patients for training, {counts.valid_slices:,} slices in
  {counts.valid_series:,} series of {counts.valid_patients:,} patients (fold
  {record.fold}) for validation. No patient is on both sides.
* The networks: {
        "each on all patients but those of its fold"
        if plural
        else "on the same training patients"
    }.{seen}
* Best of {len(history)} epochs: epoch {int(best["epoch"]) + 1}.

## How good it was there

The head alone, on the validation fold: weighted log loss (any counts 2 of 7)
{best["valid_weighted_log_loss"]:.4f}. Epoch and blend were chosen on these series.
Other scanners, protocols and patients were not tested.

## Calibration

{format_calibration(record.calibration)}

## What made it

{format_versions(record.environment)}
"""
