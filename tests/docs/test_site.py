"""The docs build as a site without a warning, and the site works from disk."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import ichfast
from tests.docs.pages import ROOT
from tests.test_face import PACKAGES

pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install '.[docs]'")
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The ids of a page, what it loads, and what its links lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag refers to."""
        found = {name: value or "" for name, value in attrs}
        self.ids.add(found.get("id", ""))
        self.loaded += [found[name] for name in ("src", "srcset") if name in found]
        if "href" in found:
            (self.links if tag == "a" else self.loaded).append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it, in another folder."""
    out = tmp_path_factory.mktemp("site")
    recipe = re.search(r"^docs: .*\n\t\$\(BIN\)/python (.*)$", makefile(), re.MULTILINE)
    assert recipe
    *command, last = shlex.split(recipe[1])
    assert last == "docs/build"
    done = subprocess.run(
        [sys.executable, *command, out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def makefile() -> str:
    return (ROOT / "Makefile").read_text("utf-8")


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """The pages of the site, by path."""
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_within_the_site_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = path if not parts.path else target
            is_there = target.is_file() and (
                not parts.fragment or unquote(parts.fragment) in pages[target].ids
            )
            if not is_there:
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_links_show_titles_and_no_names_of_files(site: Path) -> None:
    text = (site / "start.html").read_text("utf-8")
    assert ">Packed stores<" in (site / "machines.html").read_text("utf-8")
    assert ">GPUs and many machines</span></a> says what to install" in text
    shown = {
        path.name: re.findall(r">([\w./-]+\.md)<[^<]*</a>", path.read_text("utf-8"))
        for path in site.rglob("*.html")
    }
    assert {name: links for name, links in shown.items() if links} == {}


def test_nothing_is_loaded_from_a_network(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {link for page in pages.values() for link in page.loaded}
    styles = {
        link
        for path in site.rglob("*.css")
        for link in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", path.read_text())
    }
    with_host = {link for link in loaded | styles if urlsplit(link).netloc}
    assert loaded
    assert with_host == set()


def test_a_search_fetches_no_pages(site: Path) -> None:
    options = (site / "_static" / "documentation_options.js").read_text("utf-8")
    assert "SHOW_SEARCH_SUMMARY: false" in options


def test_every_page_is_in_the_contents(site: Path, pages: dict[Path, Page]) -> None:
    docs = ROOT / "docs"
    names = ("*.md", "datasets/*.md", "*.rst", "*.ipynb")
    sources = [path for name in names for path in docs.glob(name)]
    listed = {link.partition("#")[0] for link in pages[site / "index.html"].links}
    expected = {
        str(path.relative_to(docs).with_suffix(".html"))
        for path in sources
        if path.stem != "index"
    }
    assert expected - listed == set()


def test_the_notebook_is_a_page_and_can_be_downloaded(
    site: Path, pages: dict[Path, Page]
) -> None:
    notebook = ROOT / "docs" / "notebook.ipynb"
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    text = (site / "notebook.html").read_text("utf-8")
    num_codes = sum(cell["cell_type"] == "code" for cell in cells)
    assert text.count('class="highlight-python') == num_codes
    page = pages[site / "notebook.html"]
    (link,) = (link for link in page.links if link.endswith(".ipynb"))
    assert (site / link).read_bytes() == notebook.read_bytes()


def test_every_public_name_is_described(site: Path, pages: dict[Path, Page]) -> None:
    described = pages[site / "api.html"].ids
    missing = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(package).__all__
        if f"{package}.{name}" not in described
    ]
    constants = {
        "ichfast.augment.PRESETS": "ichfast.augment.config.PRESETS",
        "ichfast.models.ARCHS": "ichfast.models.config.ARCHS",
        "ichfast.recipes.RECIPES": "ichfast.recipes.resolve.RECIPES",
    }
    assert [name for name in missing if constants.get(name) not in described] == []


def test_the_names_of_ichfast_itself_are_linked(
    site: Path, pages: dict[Path, Page]
) -> None:
    text = (ROOT / "docs" / "api.rst").read_text("utf-8")
    named = re.findall(r"`(\w+)\s+<ichfast\.[\w.]+>`", text)
    assert sorted(named) == sorted(dir(ichfast))
    links = pages[site / "api.html"].links
    for name in named:
        assert any(link.endswith(f".{name}") for link in links), name
