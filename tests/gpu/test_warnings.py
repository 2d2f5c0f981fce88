"""Warnings of other libraries do not fail tests of a GPU; this runs without one."""

from __future__ import annotations

import warnings


def test_a_warning_is_no_error_in_this_folder() -> None:
    warnings.warn("as a library warns", FutureWarning, stacklevel=1)
