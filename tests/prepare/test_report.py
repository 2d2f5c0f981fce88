"""The last line of prepare summarizes the run."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.report import PrepareReport, format_report

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)

REPORT = PrepareReport(
    store="store",
    slices=752_803,
    series=21_744,
    patients=18_938,
    rejected={"truncated-pixels": 1, "not-dicom": 1_200},
    duplicates=4,
    labelled=752_803,
    partly_labelled=0,
    relabelled=0,
    known={"any": 752_803},
    positives={"any": 107_933},
    labels_without_slice=1,
    slices_without_label=0,
    bytes=493 * 2**30,
    files=754_008,
    seconds=600.0,
    files_per_s=1_256.68,
    already_finished=False,
)


def test_the_line_says_what_was_kept_rejected_and_how_fast() -> None:
    assert format_report(REPORT) == (
        "finished: 752,803 slices of 21,744 series and 18,938 patients, 752,803 "
        "labelled, 4 duplicates, 493.00 GiB, 1,201 files rejected (1,200 not-dicom, "
        "1 truncated-pixels); 754,008 files in 600.0 s (1,256.7 files/s)"
    )
    assert ", 0 files rejected; 754,008 files" in format_report(
        replace(REPORT, rejected={})
    )
    known = {"study_any": 490, "study_subdural": 491}
    bags = format_report(replace(REPORT, known=known))
    assert " 752,803 labelled, 491 studies labelled, 4 duplicates," in bags
    partly = format_report(replace(REPORT, partly_labelled=1_200))
    assert " 752,803 labelled, 1,200 partly labelled, 4 duplicates," in partly
    changed = format_report(replace(REPORT, relabelled=1_200))
    assert " 752,803 labelled, labels replaced of 1,200, 4 duplicates," in changed
    again = format_report(replace(REPORT, already_finished=True))
    assert again.startswith("already finished: 752,803 slices")
    assert again.endswith("truncated-pixels)")


def test_a_run_counts_the_files_that_it_read_itself(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (source / "note.txt").write_text("no image")
    first = run([source], tmp_path / "store")
    assert (first.files, first.slices, first.rejected) == (24, 23, {"not-dicom": 1})
    assert first.files_per_s == first.files / first.seconds
    assert caplog.messages[-1] == format_report(first)
    again = run([source], tmp_path / "store")
    assert (again.files, again.files_per_s, again.slices) == (0, 0, 23)
    assert caplog.messages[-1].startswith("already finished: 23 slices")
