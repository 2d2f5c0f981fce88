"""Text without what a terminal obeys: names and ids may come from anyone."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text, with escapes for what cannot be printed, line ends among it."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, with the line ends that it has."""
    return "\n".join(map(printable, text.split("\n")))
