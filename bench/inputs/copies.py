"""Very many DICOM files that differ only in their ids, made from one file.

<folder>/00000/ID_000000000.dcm     1,000 files of one series in each folder
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness.workload import check_space
from ichfast.synth.dataset import synthesize

FILES_A_FOLDER = 1000
SIDE = 64
"""Rows and columns of a slice."""

BYTES_ON_DISK = 12 * 1024
"""Disk space of a file, in whole blocks of 4 KiB."""


def write_copies(folder: Path, num_files: int) -> None:
    """Write copies of one synthetic slice.

    Args:
        folder: Does not exist yet.
        num_files: 1 or more.

    Raises:
        BenchError: The disk has too little space.
    """
    check_space(folder.parent, num_files * BYTES_ON_DISK)
    content, slice_id, series_uid = _one_file(folder.parent)
    for number in range(num_files):
        group, rest = divmod(number, FILES_A_FOLDER)
        series_dir = folder / f"{group:05d}"
        if rest == 0:
            series_dir.mkdir(parents=True)
        name = _numbered(slice_id, number)
        own = content.replace(slice_id.encode(), name.encode())
        own = own.replace(series_uid.encode(), _numbered(series_uid, group).encode())
        (series_dir / f"{name}.dcm").write_bytes(own)


def _one_file(folder: Path) -> tuple[bytes, str, str]:
    """Make a synthetic file; returns it, its SOPInstanceUID and SeriesInstanceUID."""
    with TemporaryDirectory(dir=folder) as heads:
        synthesize(Path(heads) / "heads", num_slices=1, quirks=False, size=SIDE)
        (file,) = Path(heads).rglob("*.dcm")
        return file.read_bytes(), file.stem, file.parent.name


def _numbered(uid: str, number: int) -> str:
    """Make an id of the length of `uid` from a number."""
    return f"ID_{number:0{len(uid) - 3}d}"
