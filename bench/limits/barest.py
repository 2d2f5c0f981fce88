"""The lowest cost of copying and checking slices: a limit for prepare.

A plain loop in each process: read a file's pixels, clip them, compute their CRC-32C,
append them to one file. It reads no header and writes no table, so it is right only for
files that end in their pixels, with 16 bits, slope 1 and intercept -1024. ``cp -r``
checks nothing; a copy with a check cannot be much faster than this one.

The start of the processes is not timed.

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

from ichfast.store.shard_file import FLUSH_BYTES
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
            files: Each ends in `num_pixels` pixels.
            out_dir: Does not exist yet; gets one file of each process.
            num_pixels: Pixels of one slice.
            flush: Also write to the disk before returning.

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
    """Append the pixels of files to one file.

    Args:
        files: Each ends in `num_pixels` pixels.
        out_path: The file that is written.
        num_pixels: Pixels of one slice.
        flush: Also write to the disk before returning.

    Returns:
        The CRC-32C of the last slice.
    """
    raw_P = np.empty(num_pixels, "<i2")
    stored_P = np.empty_like(raw_P)
    # NumPy scalars: `np.maximum` with a Python int takes six times as long.
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
