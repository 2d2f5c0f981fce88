"""Writes docs/files.md: the outcome for every real file of the test set.

    python -m tests.dicom.files_table

The page is made from the reader's results, the manifest of the files, and the
expectations of the tests. The part about NIfTI is
`nifti_volumes.md`.
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
from tests.dicom.real_files import UNREADABLE_BY_PYDICOM, real_files

PAGE = Path(__file__).parents[2] / "docs" / "files.md"

INTRO = """\
# Outcome for each real file

The tests read {files} files of the test set. {stored} are stored, as {slices} slices,
and {rejected} are rejected. `python -m tests.dicom.files_table` writes this page, and
`tests/dicom/test_files_table.py` compares it with the reader.

Each file is read alone. Identical slices are found by `ichfast prepare`, which keeps
one of them. Quirks are the defects that were mended: `ichfast/dicom/slices.py` lists
them, `ichfast/dicom/quirks.py` and `ichfast/dicom/header.py` explain them.
`ichfast/dicom/kind.py` decides which images are axial CT slices in HU.
`tests/dicom/test_real_files.py` compares the pixels of every stored file with those
that pydicom decodes, and those with a sha256 made by another installation. Where
pydicom fails, it compares them with a file of the same pixels.
"""

DIFFERENCES = """\
## Where other readers differ

`tests/dicom/test_referees.py` compares the HU of every stored file with those of
SimpleITK and GDCM. They differ only in these files.
"""

REFUSALS = """\
SimpleITK or GDCM reads these CT files, and ichfast rejects them:
"""

VOLUMES = Path(__file__).with_name("nifti_volumes.md").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome for one file."""

    file: str
    container: str
    """The archive that holds it, or empty."""
    num_slices: int
    code: str
    """Its reject code, or empty."""
    quirks: tuple[str, ...]
    why: str
    """Why it is rejected; for a stored file, how its pixels are known."""
    note: str
    """Its note in the manifest."""


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
                same_pixels = Path(UNREADABLE_BY_PYDICOM[row["file"]]).name
                why = f"pydicom fails; the pixels are those of {same_pixels}"
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


def format_page(outcomes: Sequence[Outcome]) -> str:
    """Write the page about `outcomes`."""
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
            ("archive", "files", "stored slices", "quirks (slices)", "note"),
            [_series_row(archive, members) for archive, members in series.items()],
        ),
        "## Stored files\n",
        _table(
            ("file", "slices", "quirks", "note"),
            [
                (one.file, str(one.num_slices), ", ".join(one.quirks), _described(one))
                for one in single
                if not one.code
            ],
        ),
        "## Rejected files\n",
        _table(
            ("file", "code", "detail", "note"),
            [(one.file, one.code, one.why, one.note) for one in single if one.code],
        ),
        DIFFERENCES,
        _table(
            ("file", "reader", "pixels", "largest difference, HU", "decision"),
            [
                (
                    file,
                    ", ".join(one.referees),
                    f"{one.num_pixels:,}" if one.num_pixels else "not read",
                    f"{one.largest_hu:,}" if one.num_pixels else "",
                    one.reason,
                )
                for file, one in sorted(DECISIONS.items())
            ],
        ),
        REFUSALS,
        _table(("file", "decision"), sorted(REFUSED.items())),
        VOLUMES,
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
    write_text_atomically(PAGE, format_page(read_outcomes()))
