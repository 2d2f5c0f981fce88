"""Warnings of other libraries are no errors in these tests.

A GPU machine has its own versions of torch and CuPy, which may warn of what a test
cannot change. An error in their place would fail the test and leave the device's
settings changed for the tests after it.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Undo ``filterwarnings = ["error"]`` for the tests in this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("default"))
