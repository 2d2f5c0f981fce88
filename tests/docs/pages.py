"""The README and the pages of the docs, and the blocks in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"

PAGES = [README, *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("datasets/*.md"))]


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    """``sh``, ``python``, or empty for text that nobody types."""

    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.findall(
        r"^```(\S*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [Block(*each) for each in found]
