"""docs/files.md lists the current outcome for every real file."""

from __future__ import annotations

import pytest

from tests.dicom.files_table import PAGE, format_page, read_outcomes
from tests.dicom.real_files import REJECTED, needs_data


@needs_data
@pytest.mark.slow
def test_the_page_about_real_files_matches_the_reader() -> None:
    outcomes = read_outcomes()
    assert {one.file: one.code for one in outcomes if one.code} == REJECTED
    assert format_page(outcomes) == PAGE.read_text("utf-8"), (
        "run python -m tests.dicom.files_table"
    )
