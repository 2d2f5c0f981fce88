"""Writes docs/files.md: what becomes of every real file of the test set, and why.

    python -m tests.dicom.files_table

All of it comes from the reader, the manifest of the files, and what the tests hold the
reader to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ichfast.dicom.slices import read_slices
from ichfast.errors import RejectError
from ichfast.system.files import write_text_atomically
from tests.dicom.decisions import DECISIONS, REFUSED
from tests.dicom.test_slices import UNREADABLE_BY_PYDICOM, real_files

PAGE = Path(__file__).parents[2] / "docs" / "files.md"

INTRO = """\
# What becomes of real files

Of the {files} files that the tests read where the test set is at hand, {stored} are
stored, as {slices} slices, and {rejected} are rejected. `python -m
tests.dicom.files_table` writes this page, and `tests/dicom/test_files_table.py` holds
it to what the reader does.

It goes file by file: that a slice stands there twice is found by `ichfast prepare`,
which keeps it once. Quirks are what was mended; `ichfast/dicom/slices.py` lists them,
`ichfast/dicom/quirks.py` and `ichfast/dicom/header.py` say how.
`tests/dicom/test_slices.py` compares the pixels of every stored file with pydicom's,
and those with a sha256 that another installation made; where pydicom gives up, with the
pixels of a file that is the same.
"""

DIFFERENCES = """\
## Where two other readers differ

The HU of every stored file are compared with those of SimpleITK and GDCM. They differ
in these files alone, as `tests/dicom/test_referees.py` checks.
"""

REFUSALS = """\
These CT files one of them reads, and ichfast rejects:
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file."""

    file: str
    container: str
    """The archive it lies in, or nothing."""
    num_slices: int
    code: str
    """Of its rejection, or nothing."""
    quirks: tuple[str, ...]
    why: str
    """What the reader found, if it rejects the file; else how pixels are known."""
    note: str
    """What the manifest says of it."""


def read_outcomes() -> list[Outcome]:
    """Read every file of the manifest."""
    outcomes = []
    for row, content in real_files():
        slices, code, why = [], "", ""
        try:
            slices = list(read_slices(content))
        except RejectError as error:
            code, why = error.code, error.detail
        else:
            if row["file"] in UNREADABLE_BY_PYDICOM:
                twin = Path(UNREADABLE_BY_PYDICOM[row["file"]]).name
                why = f"pydicom gives up; the pixels are those of {twin}"
            else:
                assert row["pixel_sha256"], row["file"]
        quirks = sorted({quirk for one in slices for quirk in one.quirks})
        outcomes.append(
            Outcome(
                row["file"],
                row["container"],
                len(slices),
                code,
                tuple(quirks),
                why,
                row["note"],
            )
        )
    return sorted(outcomes, key=lambda one: (one.container, one.file))


def page(outcomes: Sequence[Outcome]) -> str:
    """The page about `outcomes`."""
    rejected = [one for one in outcomes if one.code]
    series: defaultdict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        if one.container:
            series[one.container].append(one)
    single = [one for one in outcomes if not one.container]
    codes = Counter(one.code for one in rejected)
    intro = INTRO.format(
        files=len(outcomes),
        stored=len(outcomes) - len(rejected),
        slices=sum(one.num_slices for one in outcomes),
        rejected=len(rejected),
    )
    parts = [
        intro,
        "## Rejected, by code\n",
        _table(("code", "files"), sorted((code, str(n)) for code, n in codes.items())),
        "## Complete series\n",
        _table(
            ("archive", "files", "stored slices", "quirks (slices)", "what it is"),
            [_series_row(archive, members) for archive, members in series.items()],
        ),
        "## Stored files\n",
        _table(
            ("file", "slices", "quirks", "what it is"),
            [
                (one.file, str(one.num_slices), ", ".join(one.quirks), _described(one))
                for one in single
                if not one.code
            ],
        ),
        "## Rejected files\n",
        _table(
            ("file", "code", "what the reader found", "what it is"),
            [(one.file, one.code, one.why, one.note) for one in single if one.code],
        ),
        DIFFERENCES,
        _table(
            ("file", "who differs", "pixels", "largest, HU", "decision"),
            [
                (
                    file,
                    ", ".join(one.referees),
                    f"{one.num_pixels:,}" if one.num_pixels else "cannot read it",
                    f"{one.largest_hu:,}" if one.num_pixels else "",
                    one.reason,
                )
                for file, one in sorted(DECISIONS.items())
            ],
        ),
        REFUSALS,
        _table(("file", "decision"), sorted(REFUSED.items())),
    ]
    return "\n".join(parts)


def _series_row(archive: str, members: Sequence[Outcome]) -> tuple[str, ...]:
    quirks = Counter(quirk for one in members for quirk in one.quirks)
    assert not any(one.code for one in members), archive
    return (
        archive,
        str(len(members)),
        str(sum(one.num_slices for one in members)),
        ", ".join(f"{name} ({count})" for name, count in sorted(quirks.items())),
        members[0].note,
    )


def _described(one: Outcome) -> str:
    return "; ".join(text for text in (one.note, one.why) if text)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )


if __name__ == "__main__":
    write_text_atomically(PAGE, page(read_outcomes()))
