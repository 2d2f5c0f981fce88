"""docs/files.md says what the reader does with the real files today."""

from __future__ import annotations

import pytest

from tests.dicom.files_table import PAGE, page, read_outcomes
from tests.dicom.test_slices import REJECTED, needs_data


@needs_data
@pytest.mark.slow
def test_the_page_about_real_files_is_true() -> None:
    outcomes = read_outcomes()
    assert {one.file: one.code for one in outcomes if one.code} == REJECTED
    assert page(outcomes) == PAGE.read_text("utf-8"), (
        "run python -m tests.dicom.files_table"
    )
