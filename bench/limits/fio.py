"""Random reads by fio, the tool that storage is commonly judged with.

It reads as the store's reader does: slices at random places of the same shards, past
the page cache, in as many threads, each waiting for its own read. Which slices, it
draws itself, the same in every turn.

1. It clocks itself, so that its start does not count.
2. It writes nothing (``--readonly``) and reads as many bytes as the reader does.
3. It ends: after `RUN_S` by itself, after `PATIENCE_S` it is stopped.

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
"""Seconds after which fio stops reading, however much it has read."""

PATIENCE_S = 60.0
"""Seconds after which fio counts as hung."""

MOST_FILES = 128
"""fio takes 4,096 characters of file names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fio:
    """How fio reads slices of a store."""

    level_dir: Path
    """Holds the shards of a level."""

    shards: tuple[str, ...]
    """Their file names; only the first `MOST_FILES` are read."""

    slice_bytes: int
    num_slices: int
    """Read in a turn, rounded up to as many for each thread."""

    threads: int
    is_direct: bool
    """Whether to read past the page cache; a slice is then whole pages."""

    def read(self) -> Clocked:
        """Read at random.

        Raises:
            BenchError: fio is not there, failed, hung, or printed no figures.
        """
        try:
            done = subprocess.run(
                self.command(),
                cwd=self.level_dir,
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except OSError as error:
            raise BenchError(
                f"no fio on PATH that starts ({error.strerror}); install it "
                "(apt-get install fio)"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"fio did not end in {PATIENCE_S:g} s; is the disk well?"
            ) from error
        if done.returncode != 0:
            said = done.stderr.strip() or "nothing said"
            raise BenchError(
                f"fio failed: {said.splitlines()[0]} (status {done.returncode})"
            )
        return parse_reads(done.stdout, self.slice_bytes)

    def command(self) -> list[str]:
        """The command, to be run in `level_dir`."""
        each = math.ceil(self.num_slices / self.threads)
        return [
            "fio",
            "--name=slices",
            f"--filename={':'.join(self.shards[:MOST_FILES])}",
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
    """Slices and seconds out of what fio printed, notes before its JSON or not.

    Args:
        output: of fio with ``--group_reporting --output-format=json``.
        slice_bytes: of one slice.

    Raises:
        BenchError: no such figures in it, or nothing was read.
    """
    try:
        (group,) = json.loads(output[output.find("{") :])["jobs"]
        num_bytes, milliseconds = group["read"]["io_bytes"], group["read"]["runtime"]
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            "fio printed no figures of its reads where its JSON has them; "
            "bench/limits/fio.py knows version 3"
        ) from error
    if num_bytes < slice_bytes:
        raise BenchError(f"fio read {num_bytes} bytes, less than a slice")
    # It counts whole milliseconds: a few small slices take none.
    return Clocked(num_bytes // slice_bytes, max(milliseconds, 1) / 1000)
