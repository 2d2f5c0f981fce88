"""The pictures of the README and the docs are those that the code draws."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs import pictures
from tests.docs.pages import PAGES, ROOT
from tests.report.browser import CHROMIUM

FIGURES = ROOT / "bench" / "results" / "throughput.png"
"""Drawn by bench/readme.py."""


def test_pages_show_only_pictures_that_are_drawn() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text("utf-8"))
    }
    assert shown == {pictures.BATCH, pictures.REPORT, FIGURES}
    assert set(pictures.BATCH.parent.iterdir()) == {pictures.BATCH, pictures.REPORT}


@pytest.mark.slow
def test_the_batch_is_drawn_by_this_code(tmp_path: Path) -> None:
    pictures.draw_batch(tmp_path / "batch.png")
    drawn, kept = (
        np.asarray(Image.open(path).convert("L"), np.float64)
        for path in (tmp_path / "batch.png", pictures.BATCH)
    )
    assert drawn.shape == kept.shape
    difference = float(np.abs(drawn - kept).mean())
    assert difference < 2.0, "run `make pictures`"  # fonts may differ


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_top_of_a_report_is_drawn(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<body style='background: rgb(10, 20, 30)'>", "utf-8")
    pictures.draw_report(page, tmp_path / "report.png")
    with (
        Image.open(tmp_path / "report.png") as drawn,
        Image.open(pictures.REPORT) as kept,
    ):
        assert drawn.size == kept.size
        assert drawn.convert("RGB").getpixel((5, 5)) == (10, 20, 30)


def test_without_a_demo_it_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pictures.main(str(tmp_path)) == 1
    assert "run `make demo`" in capsys.readouterr().err
