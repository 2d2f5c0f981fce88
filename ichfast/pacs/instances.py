"""The instances that a study's predictions rest on, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ichfast.errors import RejectError
from ichfast.pacs.file_header import FileHeader, read_file_header
from ichfast.sources.sources import list_entries, read_entries
from ichfast.system.limits import LimitedProcess, LimitError

MAX_HEADER_BYTES = 2**30
"""Upper limit of the memory to read a header, bytes, beyond that of its file."""

HEADER_S = 10.0
"""Upper limit of the processor time to read a header, seconds."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A slice as other DICOM files refer to it."""

    header: FileHeader
    frame: int | None
    """Number of the frame from 1; None in a file without frames."""


SliceKey = tuple[str, str]
"""Series and slice id, as in a predictions table."""


def find_instances(
    table: pd.DataFrame, sources: Sequence[Path | str]
) -> dict[SliceKey, Instance]:
    """Read the headers of the files of some slices.

    Args:
        table: columns `series` and `slice_id`, as they are in the files.
        sources: where the files are.

    Returns:
        The instances, without those whose header cannot be read.

    Raises:
        SourceError: a source is not there any more.
    """
    missing = set(slice_keys(table))
    found: dict[SliceKey, Instance] = {}
    with LimitedProcess(extra_bytes=MAX_HEADER_BYTES, timeout_s=HEADER_S) as process:
        for _, content in read_entries(list_entries(sources)):
            if not missing:
                break
            if isinstance(content, RejectError):
                continue
            if (header := _read(process, content)) is None:
                continue
            for slice_id, frame in header.slice_ids():
                if (key := (header.series_uid, slice_id)) in missing:
                    missing.remove(key)
                    found[key] = Instance(header, frame)
    return found


def slice_keys(table: pd.DataFrame) -> list[SliceKey]:
    """Series and slice id of each row."""
    return list(zip(table["series"], table["slice_id"], strict=True))


def _read(process: LimitedProcess, content: bytes) -> FileHeader | None:
    try:
        return process.call(read_file_header, content)
    except (LimitError, TimeoutError):
        return None
