"""Texts in csv files that a spreadsheet would take for a formula.

A spreadsheet that opens a csv runs a cell that begins like a formula, such as
``=HYPERLINK(...)``, also if the cell is quoted. Ids and file names come from elsewhere,
so such a text gets a ``'`` in front of it, which our readers take away again.

Source:
    OWASP, CSV Injection: cells that begin with = + - @ tab, CR or LF.
"""

from __future__ import annotations

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A text that begins with one of these may be taken for a formula."""


def escape_formula(text: str) -> str:
    """Put a ``'`` in front of a text that begins like a formula, or with a ``'``."""
    return f"'{text}" if text.startswith((*FORMULA_STARTS, "'")) else text


def unescape_formula(text: str) -> str:
    """The text that `escape_formula` was given."""
    is_escaped = text.startswith("'") and escape_formula(text[1:]) == text
    return text[1:] if is_escaped else text
