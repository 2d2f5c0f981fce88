"""No text of ours is a formula in a spreadsheet, and each comes back as it was."""

from __future__ import annotations

import pytest

from ichfast.system.spreadsheet import (
    FORMULA_STARTS,
    escape_formula,
    unescape_formula,
)


@pytest.mark.parametrize("start", [*FORMULA_STARTS, "'", "''", "'=", "", "1.2", "ID_"])
def test_a_text_is_no_formula_and_comes_back(start: str) -> None:
    text = f"{start}HYPERLINK(1)" if start else ""
    escaped = escape_formula(text)
    assert not escaped.startswith(FORMULA_STARTS)
    assert unescape_formula(escaped) == text


def test_ordinary_texts_stay_as_they_are() -> None:
    for text in ("ID_0a1b", "1.2.840.113", "a=b", "it's", ""):
        assert escape_formula(text) == text


def test_a_quote_that_nobody_wrote_for_a_formula_stays() -> None:
    assert unescape_formula("'tis") == "'tis"
