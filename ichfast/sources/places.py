"""Where sources are: local paths, URLs of files, and studies on DICOMweb servers."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from ichfast.errors import SourceError
from ichfast.sources.dicomweb import WebStudy, is_web_study, web_study
from ichfast.sources.remote import Container, connect_to

Place = Container | WebStudy
"""A `Container`, or a study on a server, which is like a folder of files."""


def locate(source: Path | str) -> Place:
    """Turn what the user typed into a local path or a remote place.

    Args:
        source: a path, or a URL. ``file://`` URLs are local paths.

    Raises:
        SourceError: the URL's protocol is unknown, needs a package that is not
            installed, or cannot be understood.
    """
    if isinstance(source, Path):
        return source
    protocol, is_url, rest = source.partition("://")
    if not is_url:
        return Path(source)
    if protocol == "file":
        if not rest.startswith("/"):
            raise SourceError(f"{source} has no absolute path; write file:///FOLDER")
        return Path(unquote(rest))
    return web_study(source) if is_web_study(source) else connect_to(source)
