"""Draws the pictures of the README and the docs: `docs/pictures`.

    python -m tests.docs.pictures ichfast-demo

`make pictures` runs it. A batch is drawn from synthetic heads that are made anew. The
report is the page in the folder of `make demo`, as headless Chromium shows its top.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ichfast.cli.demo import PREVALENCE
from ichfast.labels import read_labels
from ichfast.prepare.prepare import prepare_store
from ichfast.recipes.resolve import resolve_recipe
from ichfast.report.preview import write_preview
from ichfast.synth.dataset import synthesize
from tests.docs.pages import DOCS
from tests.report.browser import CHROMIUM, screenshot

BATCH = DOCS / "pictures" / "batch.png"
REPORT = DOCS / "pictures" / "report.png"

REPORT_WIDTH, REPORT_HEIGHT = 1100, 860
"""Pixels; from the title to the first charts."""


def draw_batch(png: Path) -> None:
    """Draw eight slices, and what the recipe exp-30 makes of them."""
    with tempfile.TemporaryDirectory() as folder:
        heads = synthesize(
            Path(folder, "heads"), num_slices=120, prevalence=PREVALENCE, size=256
        )
        store = Path(folder, "store")
        prepare_store(
            [heads.dicom_dir],
            store,
            labels=read_labels(heads.labels_path),
            keep_ids=True,
            workers=1,
        )
        write_preview(store, resolve_recipe("exp-30"), png, epoch=0)


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
