"""One piece of memory for all ranks of a machine, filled by all of them together.

It has no name in any file system: the kernel frees it when the last process that sees
it is gone, however that ended. Nor does the size of /dev/shm, which containers keep
small, limit it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import distributed

from ichfast.errors import LoaderError
from ichfast.system.ranks import Ranks


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory that this rank and others of its machine see."""

    memory: npt.NDArray[np.uint8]

    number: int
    """Of this rank among them, from 0."""

    count: int
    """How many they are."""

    def own_part(self, length: int) -> slice:
        """Which of `length` things this rank is to fill in."""
        return slice(
            self.number * length // self.count,
            (self.number + 1) * length // self.count,
        )


@contextmanager
def share_memory(num_bytes: int, ranks: Ranks) -> Iterator[SharedMemory]:
    """Take memory together, fill it, and wait until all have.

    All ranks call this alike. A rank alone gets memory of its own.

    Args:
        num_bytes: of all; the same on every rank of a machine.
        ranks: who calls.

    Yields:
        The memory, to be filled by each rank in part. Behind the context it holds
        what all have filled in, and lasts as long as arrays show it.

    Raises:
        LoaderError: the ranks have not joined, or cannot see another's memory.
    """
    if ranks.world_size == 1:
        yield SharedMemory(np.empty(num_bytes, np.uint8), 0, 1)
        return
    if not distributed.is_initialized():
        raise LoaderError(
            f"{ranks.world_size} ranks share memory, but torch.distributed is not "
            "initialized; call init_process_group before, or take cache none"
        )
    # Each rank offers some, which takes nothing before it is written to; that of the
    # first on a machine is taken.
    descriptor = os.memfd_create("ichfast")
    try:
        os.ftruncate(descriptor, num_bytes)
        machine = _machine()
        offers = ranks.gather((machine, f"/proc/{os.getpid()}/fd/{descriptor}"))
        here = [rank for rank, (where, _) in enumerate(offers) if where == machine]
        memory = _map(Path(offers[here[0]][1]), num_bytes)
        yield SharedMemory(memory, here.index(ranks.rank), len(here))
        ranks.gather(None)
    finally:
        os.close(descriptor)


def _machine() -> tuple[str, int]:
    """What processes have in common that see each other in /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return boot, Path("/proc/self/ns/pid").stat().st_ino


def _map(path: Path, num_bytes: int) -> npt.NDArray[np.uint8]:
    try:
        with path.open("r+b") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), np.uint8)
    except OSError as error:
        raise LoaderError(
            "cannot see the memory of another rank on this machine "
            f"({error.strerror}); take --cache none, or start all ranks by one user"
        ) from error
