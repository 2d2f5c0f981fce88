"""A calibration as text: what changed for each class, and its thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ichfast.evaluation.bootstrap import Interval
from ichfast.evaluation.calibration import (
    UNFITTED,
    Calibration,
    ClassCalibration,
    Threshold,
)
from ichfast.evaluation.scoretable import format_interval, format_percent, format_score

CLASS_HEADINGS = (
    *("labelled", "positives", "of patients", "temperature", "bias"),
    *("loss before", "after", "cross-fitted"),
)
"""Headings of `class_cells`."""

THRESHOLD_HEADINGS = ("threshold", "sensitivity", "specificity")
"""Headings of `threshold_cells`."""


def class_cells(each: ClassCalibration) -> list[str]:
    """Counts, temperature, bias and losses of a class."""
    losses = each.loss_before, each.loss_after, each.loss_crossfitted
    return [
        *(f"{n:,}" for n in (each.slices, each.positives, each.positive_patients)),
        *(f"{value:.3f}" for value in (each.temperature, each.bias)),
        *map(format_score, losses),
    ]


def threshold_cells(threshold: Threshold | None) -> list[tuple[str, str]]:
    """Threshold, sensitivity and specificity of a class, each with its interval."""
    if threshold is None:
        return [("-", "-")] * len(THRESHOLD_HEADINGS)
    return [
        (format_score(threshold.probability), format_interval(threshold.interval)),
        (
            format_percent(threshold.sensitivity),
            _percents(threshold.sensitivity_interval),
        ),
        (
            format_percent(threshold.specificity),
            _percents(threshold.specificity_interval),
        ),
    ]


def _percents(interval: Interval | None) -> str:
    return " to ".join(map(format_percent, interval)) if interval else "-"


def why_unfitted(each: ClassCalibration) -> str:
    """Why a class stays as it is; empty where it is fitted."""
    return UNFITTED[each.unfitted] if each.unfitted else ""


def format_calibration(
    calibration: Calibration,
    *,
    former: Calibration | None,
    loss_former: float,
    moved: Mapping[str, float],
) -> str:
    """Write a calibration as text, and how far it is from the one before.

    Args:
        calibration: the new one.
        former: the one before, if there was one.
        loss_former: weighted log loss of the same slices with the one before.
        moved: mean distance between the probabilities before and now, by class.
    """
    before, after, crossfitted = (
        calibration.loss_before,
        calibration.loss_after,
        calibration.loss_crossfitted,
    )
    losses = (
        f"weighted log loss {before:.4f} without calibration, {after:.4f} with it, "
        f"{crossfitted:.4f} cross-fitted over patients"
    )
    counts = f"{calibration.slices:,} slices of {calibration.patients:,} patients"
    lines = [counts, losses]
    if former:
        lines.append(f"with the calibration before: {loss_former:.4f}")
    if crossfitted >= min(before, loss_former):
        lines.append(
            "cross-fitted it is no better than before: these are too few patients, or "
            "the probabilities were right; `ichfast calibrate RUN --remove` undoes it"
        )
    classes = [["", *CLASS_HEADINGS, "moved by", "from"]]
    thresholds = [["", *THRESHOLD_HEADINGS]]
    for k, each in enumerate(calibration.classes):
        was = former.classes[k] if former else None
        origin = f"{was.temperature:.3f}, {was.bias:.3f}" if was else "-"
        moved_by = format_score(moved[each.name])
        classes.append([each.name, *class_cells(each), moved_by, origin])
        cells = threshold_cells(each.threshold)
        thresholds.append(
            [each.name, *(f"{text} ({interval})" for text, interval in cells)]
        )
    aim = calibration.aim
    return "\n".join(
        [
            *lines,
            "",
            *_aligned(classes),
            *(
                f"{each.name} stays as it is: {why_unfitted(each)}"
                for each in calibration.classes
                if each.unfitted
            ),
            "moved by: mean distance between a slice's probabilities before and now",
            "",
            f"thresholds at a {aim.figure} of {aim.value:g}, with 95% intervals:",
            *_aligned(thresholds),
        ]
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *map(str.rjust, row[1:], widths[1:]),
            ]
        )
        for row in rows
    ]
