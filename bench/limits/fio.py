"""Random reads by fio, the common tool to measure storage.

It reads like the store's reader: slices at random places of the same shards, past the
page cache, with the same number of threads, each waiting for its own read. It draws the
places itself, the same ones in every turn.

1. It measures its own time, so that its start does not count.
2. It writes nothing (``--readonly``) and reads as many bytes as the reader does.
3. It ends by itself after `RUN_S`, and is killed after `TIMEOUT_S`.

Source:
    https://fio.readthedocs.io/en/latest/fio_doc.html (options, JSON output)
"""

from __future__ import annotations

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.harness.measure import BenchError, Clocked
from ichfast.store.shards import NPY_HEADER_BYTES

RUN_S = 20
"""Time after which fio stops reading, seconds."""

TIMEOUT_S = 60.0
"""Time after which fio counts as hung, seconds."""

MAX_FILES = 128
"""Upper limit of the files that are read: fio takes 4,096 characters of names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fio:
    """How fio reads slices of a store."""

    level_dir: Path
    """Folder of the shards of a level."""

    shards: tuple[str, ...]
    """Their file names; only the first `MAX_FILES` are read."""

    slice_bytes: int
    num_slices: int
    """Slices of a turn, rounded up to the same number for each thread."""

    threads: int
    is_direct: bool
    """Whether to bypass the page cache; a slice is then whole pages."""

    def read(self) -> Clocked:
        """Read slices at random places.

        Raises:
            BenchError: fio is missing, failed, hung, or printed no figures.
        """
        try:
            done = subprocess.run(
                self.command(),
                cwd=self.level_dir,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise BenchError(
                f"no fio on PATH that starts ({error.strerror}); install it "
                "(apt-get install fio)"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"fio did not end in {TIMEOUT_S:g} s; check the disk"
            ) from error
        if done.returncode != 0:
            printed = done.stderr.strip() or "it printed nothing"
            raise BenchError(
                f"fio failed: {printed.splitlines()[0]} (status {done.returncode})"
            )
        return parse_reads(done.stdout, self.slice_bytes)

    def command(self) -> list[str]:
        """Build the command, to be run in `level_dir`."""
        each = math.ceil(self.num_slices / self.threads)
        return [
            "fio",
            "--name=slices",
            f"--filename={':'.join(self.shards[:MAX_FILES])}",
            "--readonly",
            "--rw=randread",
            f"--bs={self.slice_bytes}",
            f"--offset={NPY_HEADER_BYTES}",
            f"--io_size={each * self.slice_bytes}",
            f"--direct={int(self.is_direct)}",
            "--ioengine=psync",
            "--thread",
            f"--numjobs={self.threads}",
            "--group_reporting",
            f"--runtime={RUN_S}",
            "--output-format=json",
        ]


def parse_reads(output: str, slice_bytes: int) -> Clocked:
    """Read slices and seconds from the output of fio.

    Args:
        output: JSON of ``--group_reporting --output-format=json``, perhaps after notes.
        slice_bytes: Bytes of one slice.

    Raises:
        BenchError: The figures are missing, or nothing was read.
    """
    try:
        (group,) = json.loads(output[output.find("{") :])["jobs"]
        num_bytes, milliseconds = group["read"]["io_bytes"], group["read"]["runtime"]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            "fio printed no figures of its reads in its JSON; install version 3, which "
            "bench/limits/fio.py reads"
        ) from error
    if num_bytes < slice_bytes:
        raise BenchError(f"fio read {num_bytes} bytes, less than a slice")
    # fio counts whole milliseconds: a few small slices take 0.
    return Clocked(num_bytes // slice_bytes, max(milliseconds, 1) / 1000)
