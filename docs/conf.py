"""Settings of the documentation site, which `make docs` builds with Sphinx.

The pages work from disk: furo uses the fonts of the system, and the search index is a
script. Nothing is fetched from a network.
"""

from __future__ import annotations

import builtins

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import ichfast

project = "ichfast"
release = ichfast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

exclude_patterns = ["build"]

myst_heading_anchors = 3

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


def setup(app: Sphinx) -> None:
    """Connect to the events of Sphinx."""
    app.connect("doctree-read", _unlink_builtins)
