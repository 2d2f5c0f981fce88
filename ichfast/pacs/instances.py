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


SliceKey = tuple[str, str, str]
"""Study, series and slice id, as in a predictions table."""


def find_instances(
    table: pd.DataFrame, sources: Sequence[Path | str]
) -> dict[SliceKey, list[Instance]]:
    """Read the headers of the files of some slices.

    Args:
        table: columns `study`, `series` and `slice_id`, as they are in the files.
        sources: where the files are.

    Returns:
        For each slice its instance, several if several files have it; none if no header
        can be read.

    Raises:
        SourceError: a source is not there any more.
    """
    found: dict[SliceKey, list[Instance]] = {key: [] for key in slice_keys(table)}
    with LimitedProcess(extra_bytes=MAX_HEADER_BYTES, timeout_s=HEADER_S) as process:
        for _, content in read_entries(list_entries(sources)):
            if isinstance(content, RejectError):
                continue
            if (header := _read(process, content)) is None:
                continue
            for slice_id, frame in header.slice_ids():
                key = (header.study_uid, header.series_uid, slice_id)
                if key in found:
                    found[key].append(Instance(header, frame))
    return found


def slice_keys(table: pd.DataFrame) -> list[SliceKey]:
    """Study, series and slice id of each row."""
    return list(zip(table["study"], table["series"], table["slice_id"], strict=True))


def _read(process: LimitedProcess, content: bytes) -> FileHeader | None:
    try:
        return process.call(read_file_header, content)
    except (LimitError, TimeoutError):
        return None
