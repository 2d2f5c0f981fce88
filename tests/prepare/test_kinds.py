"""Prepare stores axial CT slices, and counts the other images of a study by code."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from ichfast.prepare.prepare import prepare_store
from tests.dicom.real_files import DATA

HUNT = DATA / "hunt"

needs_hunt = pytest.mark.skipif(
    not HUNT.is_dir(), reason="the files of ../shared/data/hunt are not here"
)

run = partial(prepare_store, labels=None, workers=1, keep_ids=True, max_rejected="100%")


@needs_hunt
@pytest.mark.slow
def test_a_hospital_study_becomes_its_axial_slices(tmp_path: Path) -> None:
    report = run([HUNT / "hospital_study"], tmp_path / "store")
    assert report.slices == 30
    assert report.rejected == {"derived": 26, "not-ct": 1, "not-hu": 5}


@needs_hunt
@pytest.mark.slow
def test_a_localizer_among_frames_is_counted(tmp_path: Path) -> None:
    report = run([HUNT / "enh_frame_localizer.dcm"], tmp_path / "store")
    assert report.slices == 1
    assert report.rejected == {"localizer": 1}
    rejected = pd.read_csv(tmp_path / "store" / "rejected.csv")
    assert list(rejected["detail"]) == [
        "1 of 2 frames: FrameType (0008,9007) has LOCALIZER"
    ]
