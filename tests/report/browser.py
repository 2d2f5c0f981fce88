"""A page as headless Chromium shows it: its picture, and what does not fit or load."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

TIMEOUT_S = 120

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)

MEASURE = """
<script>
addEventListener("load", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const width = document.documentElement.clientWidth;
  const name = (e) => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40);
  const overflowing = [...document.querySelectorAll("body *")].filter((e) => {
    if (e.parentElement.closest(".scroll") || e.matches(".scroll")) return false;
    const box = e.getBoundingClientRect();
    const clips = e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1;
    return box.right > width + 1 || box.left < -1 || clips;
  });
  const broken = [...document.images].filter((i) => !i.complete || !i.naturalWidth);
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const measured = {
    width,
    scroll_width: document.documentElement.scrollWidth,
    summary_bottom: document.querySelector("nav")?.getBoundingClientRect().bottom,
    images: document.images.length,
    overflowing: overflowing.map(name),
    broken: broken.map((image) => image.alt),
    fetched: fetched.filter((address) => !address.startsWith("data:")),
    background: getComputedStyle(document.body).backgroundColor,
  };
  parent.postMessage(JSON.stringify(measured), "*");
});
</script>
"""
"""Runs in a copy of the page, whose policy lets it."""

FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<script>
addEventListener("message", (e) => { document.body.dataset.measured = e.data; });
</script>
<body><iframe src="measured.html" width="WIDTH" height="1000" style="border: 0">
</iframe></body>
"""
"""Shows the copy: a window itself is never narrower than 500 pixels."""


def screenshot(page: Path, png: Path, *, width: int, height: int) -> None:
    """Take a picture of the top of a page."""
    _chromium(f"--window-size={width},{height}", f"--screenshot={png}", page.as_uri())


def measure(page: Path, *, width: int, dark: bool = False) -> dict[str, Any]:
    """Say what a page has at a width, under the keys of `MEASURE`.

    Everything that can be opened is open. A copy is measured, beside the page.
    """
    text = page.read_text("utf-8")
    text = text.replace("style-src", "script-src 'unsafe-inline'; style-src")
    copy = text.replace("</body>", MEASURE + "</body>")
    page.with_name("measured.html").write_text(copy, "utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("WIDTH", str(width)), "utf-8")
    dom = _chromium(
        "--window-size=1600,1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        frame.as_uri(),
    )
    found = re.search('data-measured="(.*?)"', dom)
    assert found, "the script did not run"
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured


def _chromium(*arguments: str) -> str:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                f"--user-data-dir={profile}",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    return done.stdout
