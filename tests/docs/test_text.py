"""What README and docs say of the repository is true, and their links lead on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ichfast
from tests.docs.pages import DOCS, PAGES, README, ROOT, blocks

MAX_README_LINES = 200
MADE_BY_MAKE = "docs/build"


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_files_lead_to_files(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    names = re.findall(
        r"`((?:tests|bench|docs|ichfast)/[\w./-]+)`", page.read_text("utf-8")
    )
    missing = [name for name in names if not (ROOT / name).exists()]
    assert [name for name in missing if name != MADE_BY_MAKE] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_no_marks_of_a_merge(page: Path) -> None:
    marks = re.findall(r"^(?:<{7}|={7}|>{7})", page.read_text("utf-8"), re.MULTILINE)
    assert marks == []


def test_the_map_lists_every_package_and_nothing_that_is_gone() -> None:
    tree = blocks(DOCS / "contributing.md")[1].text
    listed = re.findall(r"^ {2}(\w+(?:/|\.py)) ", tree, flags=re.MULTILINE)
    root = Path(ichfast.__path__[0])
    packages = {f"{path.parent.name}/" for path in root.glob("*/__init__.py")}
    assert {name for name in listed if name.endswith("/")} == packages
    assert {name for name in listed if name.endswith(".py")} == {
        "errors.py",
        "windows.py",
        "labels.py",
    }


def test_the_promises_are_those_of_the_readme() -> None:
    bold = r"^\* \*\*(.+?)\*\*"
    short, full = (
        re.findall(bold, page.read_text("utf-8"), re.MULTILINE)
        for page in (README, DOCS / "promises.md")
    )
    assert short == full


def test_each_row_of_the_promises_names_a_test() -> None:
    page = (DOCS / "promises.md").read_text("utf-8")
    rows = re.findall(r"^\| .+ \|$", page, re.MULTILINE)[1:]
    assert rows
    assert [row for row in rows if "`tests/" not in row] == []
