"""Settings of the documentation site, which `make docs` builds with Sphinx.

The pages work from disk: furo uses the fonts of the system, and the search index is a
script. Nothing is fetched from a network.
"""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import ichfast

project = "ichfast"
release = ichfast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

source_suffix = {".rst": "restructuredtext", ".md": "markdown", ".ipynb": "markdown"}
exclude_patterns = ["build"]

myst_heading_anchors = 3
highlight_language = "none"

default_role = "py:obj"
"""A name in backticks is a link where the site describes what it names."""
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"ichfast {release}"
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False
"""Summaries would be fetched, which browsers refuse for pages from disk."""


def _unlink_builtins(_: Sphinx, document: nodes.document) -> None:
    """Keep Sphinx from linking a type such as `bytes` to a field of that name."""
    for link in list(document.findall(addnodes.pending_xref)):
        if hasattr(builtins, link["reftarget"]):
            link.replace_self(link.children)


def _show_notebook(app: Sphinx, name: str, text: list[str]) -> None:
    """Make Markdown of a notebook: its text, and its code as blocks."""
    file = Path(app.env.doc2path(name, base=False))
    if file.suffix != ".ipynb":
        return
    parts = []
    for cell in json.loads(text[0])["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
    parts.insert(1, f"{{download}}`Download this notebook <{file}>`.")
    text[0] = "\n\n".join(parts)


def _name_links(_: Sphinx, name: str, text: list[str]) -> None:
    """Let a link show the title of its page where it shows the name of its file."""
    del name
    text[0] = re.sub(r"\[[\w./-]+\.md\]\(", "[](", text[0])


def setup(app: Sphinx) -> None:
    """Connect to the events of Sphinx."""
    app.connect("source-read", _show_notebook)
    app.connect("source-read", _name_links)
    app.connect("doctree-read", _unlink_builtins)
