"""The least that copying and checking slices costs, to know how far prepare can come.

A plain loop in each process: read a file's pixels, clip them, sum them up with CRC-32C,
append them to one file. No header is read and no table written, so it is
right only for files that end in their pixels, 16 bits, slope 1 and intercept -1024.
``cp -r`` checks nothing; whatever must, cannot be much faster than this.

The processes are started before the clock, which they are not charged for.

Shape letters: P pixels of a slice.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np

from ichfast.store.writer import FLUSH_BYTES
from ichfast.system.files import begin_flush


class BarestCopiers:
    """Processes that copy slices. A context manager."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(
            processes, mp_context=multiprocessing.get_context("forkserver")
        )

    def copy(
        self, files: Sequence[Path], out_dir: Path, *, num_pixels: int, flush: bool
    ) -> int:
        """Copy files, an equal share in each process, and wait for all.

        Args:
            files: each ends in `num_pixels` pixels.
            out_dir: does not exist; gets one file of each process.
            num_pixels: of one slice.
            flush: end with what was written on the disk.

        Returns:
            The number of files.
        """
        out_dir.mkdir(parents=True)
        shares = [files[k :: self._processes] for k in range(self._processes)]
        copies = [
            self._pool.submit(
                copy_slices, share, out_dir / str(number), num_pixels, flush=flush
            )
            for number, share in enumerate(shares)
        ]
        for copy in copies:
            copy.result()
        return len(files)

    def __enter__(self) -> BarestCopiers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def copy_slices(
    files: Sequence[Path], out_path: Path, num_pixels: int, *, flush: bool
) -> int:
    """Append the pixels of files to one; returns the last one's CRC-32C."""
    raw_P = np.empty(num_pixels, "<i2")
    stored_P = np.empty_like(raw_P)
    # As NumPy scalars, and not `np.maximum`: that takes six times as long.
    limits = np.int16(0), np.int16(32_767)
    crc32c = num_unflushed = 0
    with out_path.open("wb", buffering=0) as out:
        for file in files:
            with file.open("rb", buffering=0) as source:
                num_bytes = os.fstat(source.fileno()).st_size
                os.preadv(source.fileno(), [raw_P.data], num_bytes - raw_P.nbytes)
            np.clip(raw_P, *limits, out=stored_P)
            crc32c = int(google_crc32c.value(stored_P))
            out.write(stored_P.data)
            num_unflushed += stored_P.nbytes
            if num_unflushed >= FLUSH_BYTES:  # as `ichfast.store.writer` does
                begin_flush(out.fileno())
                num_unflushed = 0
        if flush:
            os.fsync(out.fileno())
    return crc32c
