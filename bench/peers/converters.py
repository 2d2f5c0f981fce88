"""Peers of prepare: each DICOM file becomes one file, in several processes.

The start of the processes is not timed.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom  # noqa: TID251 - a peer, to compare ichfast.dicom with
from PIL import Image

CHUNK_FILES = 16
"""Files handed to a process at a time."""


def save_npy(path: Path, out_dir: Path) -> None:
    """Save pydicom's `pixel_array`, rescaled to HU, as .npy: the plain way.

    Args:
        path: A DICOM file.
        out_dir: Folder of the new file.
    """
    dataset = pydicom.dcmread(path)
    np.save(out_dir / f"{path.stem}.npy", _hu_HW(dataset))


def save_png(path: Path, out_dir: Path) -> None:
    """Save HU, clamped to the file's own window, as 8-bit PNG, as the reference does.

    Args:
        path: A DICOM file.
        out_dir: Folder of the new file.

    Source:
        DrHB/Intracranial-Hemorrhage-Detection, src/dicom_to_png.py: the first
        WindowCenter and WindowWidth, no rescaling to 0..255; OpenCV saturates
        what does not fit.
    """
    dataset = pydicom.dcmread(path)
    center, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    hu_HW = np.clip(_hu_HW(dataset), center - width // 2, center + width // 2)
    grey_HW = np.clip(hu_HW, 0, 255).astype(np.uint8)
    # Level 1 is the default of OpenCV's imwrite.
    Image.fromarray(grey_HW).save(out_dir / f"{path.stem}.png", compress_level=1)


CONVERTERS: dict[str, Callable[[Path, Path], None]] = {
    "pydicom-npy": save_npy,
    "png-converter": save_png,
}


class ConverterPool:
    """Processes that convert files. A context manager."""

    def __init__(self, processes: int) -> None:
        self._pool = ProcessPoolExecutor(
            processes, mp_context=multiprocessing.get_context("forkserver")
        )

    def convert(self, name: str, files: Sequence[Path], out_dir: Path) -> int:
        """Convert files.

        Args:
            name: One of `CONVERTERS`.
            files: DICOM files.
            out_dir: Does not exist yet.

        Returns:
            The number of files.
        """
        out_dir.mkdir(parents=True)
        chunks = [
            files[first : first + CHUNK_FILES]
            for first in range(0, len(files), CHUNK_FILES)
        ]
        count = len(chunks)
        done = self._pool.map(_convert, [name] * count, chunks, [out_dir] * count)
        return sum(done)

    def __enter__(self) -> ConverterPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def _convert(name: str, files: Sequence[Path], out_dir: Path) -> int:
    for file in files:
        CONVERTERS[name](file, out_dir)
    return len(files)


def _hu_HW(dataset: pydicom.Dataset) -> npt.NDArray[np.int16]:
    raw_HW = dataset.pixel_array
    slope, intercept = int(dataset.RescaleSlope), int(dataset.RescaleIntercept)
    hu_HW: npt.NDArray[np.int16] = (raw_HW.astype(np.int32) * slope + intercept).astype(
        np.int16
    )
    return hu_HW


def _first(value: object) -> int:
    values = (
        value if isinstance(value, Sequence | pydicom.multival.MultiValue) else [value]
    )
    return int(float(str(values[0])))
