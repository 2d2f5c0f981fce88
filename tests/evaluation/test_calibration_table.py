"""A calibration as text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ichfast.evaluation.calibration_table import format_calibration
from ichfast.evaluation.curves import Aim
from ichfast.labels import CLASSES
from tests.evaluation.planted import calibration_of, plant

MOVED = {name: 0.01 * k for k, name in enumerate(CLASSES)}


def test_the_text_tells_losses_temperatures_thresholds_and_what_moved() -> None:
    planted = plant(20)
    planted.labels_NK[:, 2] = np.nan
    found = calibration_of(planted, factor=3.0, shift=1.0)
    former = calibration_of(plant(20, seed=3))
    text = format_calibration(found, former=former, loss_former=0.5, moved=MOVED)
    lines = text.splitlines()
    before, after, crossfitted = (
        f"{loss:.4f}"
        for loss in (found.loss_before, found.loss_after, found.loss_crossfitted)
    )
    losses = f"{before} without calibration, {after} with it, {crossfitted} cross-fit"
    assert lines[0] == "640 slices of 20 patients"
    assert lines[1].startswith(f"weighted log loss {losses}")
    assert lines[2] == "with the calibration before: 0.5000"
    each, was = found.classes[1], former.classes[1]
    (row,) = (line.split() for line in lines[:12] if line.startswith("epidural"))
    assert row == [
        *("epidural", "640", str(each.positives), str(each.positive_patients)),
        *(f"{each.temperature:.3f}", f"{each.bias:.3f}"),
        *(f"{each.loss_before:.4f}", f"{each.loss_after:.4f}"),
        *(f"{each.loss_crossfitted:.4f}", "0.0100"),
        *(f"{was.temperature:.3f},", f"{was.bias:.3f}"),
    ]
    assert "intraparenchymal stays as it is: no slice has a label of it" in lines
    assert "thresholds at a sensitivity of 0.95, with 95% intervals:" in lines
    assert each.threshold is not None
    assert f"{each.threshold.probability:.4f} (" in lines[-5]
    assert lines[-4].split() == ["intraparenchymal", *["-", "(-)"] * 3]


def test_a_calibration_that_gains_nothing_says_so() -> None:
    found = calibration_of(plant(20), aim=Aim("specificity", 0.9))
    advice = "cross-fitted it is no better than before"
    better = replace(found, loss_before=1.0)
    text = format_calibration(better, former=None, loss_former=1.0, moved=MOVED)
    assert advice not in text
    assert "thresholds at a specificity of 0.9" in text
    for loss_former, loss_before in ((0.0, 1.0), (1.0, 0.0)):
        worse = replace(found, loss_before=loss_before)
        text = format_calibration(
            worse, former=None, loss_former=loss_former, moved=MOVED
        )
        assert advice in text
