"""Draws the pictures of the README and the docs: `docs/pictures`.

    python -m tests.docs.pictures ichfast-demo

`make pictures` runs it. A batch is drawn from synthetic heads that are made anew. The
report is the page in the folder of `make demo`, as headless Chromium shows its top.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ichfast.cli.demo import PREVALENCE
from ichfast.labels import read_labels
from ichfast.prepare.prepare import prepare_store
from ichfast.recipes.resolve import resolve_recipe
from ichfast.report.preview import write_preview
from ichfast.store.store import Store
from ichfast.synth.dataset import synthesize
from tests.docs.pages import DOCS
from tests.report.browser import CHROMIUM, screenshot

BATCH = DOCS / "pictures" / "batch.png"
REPORT = DOCS / "pictures" / "report.png"

BLEEDS = ("epidural", "intraparenchymal", "subarachnoid", "subdural")
"""Bleeds in the picture of a batch: as many as are legible in a README."""

REPORT_WIDTH, REPORT_HEIGHT = 1100, 860
"""Pixels; from the title to the first charts."""


def draw_batch(png: Path) -> None:
    """Draw a slice with each bleed of `BLEEDS`, and what exp-30 makes of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = synthesize(
            folder / "heads", num_slices=160, prevalence=PREVALENCE, size=256
        )
        labels = read_labels(heads.labels_path)

        def prepare(store: Path, sources: Sequence[Path]) -> Path:
            prepare_store(sources, store, labels=labels, keep_ids=True, workers=1)
            return store

        with Store(prepare(folder / "all", [heads.dicom_dir])) as store:
            chosen = [_middle_slice(store.table, bleed) for bleed in BLEEDS]
        files = [next(heads.dicom_dir.rglob(f"{each}.dcm")) for each in chosen]
        store_path = prepare(folder / "chosen", files)
        write_preview(store_path, resolve_recipe("exp-30"), png, epoch=0)


def _middle_slice(table: pd.DataFrame, bleed: str) -> str:
    """The slice in the middle of the bleed that the most slices of a series show."""
    shown = table[table[bleed] == 1]
    series = shown["series"].value_counts().sort_index().idxmax()
    slices = shown[shown["series"] == series].sort_values("position_mm")["slice_id"]
    return str(slices.iloc[len(slices) // 2])


def draw_report(page: Path, png: Path) -> None:
    """Draw the top of a report.

    Args:
        page: the HTML file.
        png: the picture. Replaced if it exists.
    """
    screenshot(page.resolve(), png, width=REPORT_WIDTH, height=REPORT_HEIGHT)


def main(demo: str) -> int:
    """Draw all pictures; returns the exit status."""
    page = Path(demo, "report.html")
    if CHROMIUM is None or not page.is_file():
        print(f"Error: needs Chromium, and {page}: run `make demo`", file=sys.stderr)  # noqa: T201
        return 1
    draw_batch(BATCH)
    draw_report(page, REPORT)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
