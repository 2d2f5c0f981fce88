"""Memory shared by all ranks of a machine, which fill it together.

It has no name in any file system, so the kernel frees it when the last process that
maps it ends, even by a crash. The size of /dev/shm, small in containers, does not limit
it.
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
    """Memory that the ranks of a machine share."""

    memory: npt.NDArray[np.uint8]

    number: int
    """Number of this rank on its machine, from 0."""

    count: int
    """Number of ranks on the machine."""

    def own_part(self, length: int) -> slice:
        """Part of a sequence of `length` items that this rank fills."""
        return slice(
            self.number * length // self.count,
            (self.number + 1) * length // self.count,
        )


@contextmanager
def share_memory(num_bytes: int, ranks: Ranks) -> Iterator[SharedMemory]:
    """Allocate memory that the ranks of a machine share, and fill it together.

    All ranks enter this context. A single rank gets ordinary memory.

    Args:
        num_bytes: size of the memory; the same on every rank of a machine.
        ranks: all processes that enter the context.

    Yields:
        The memory; each rank fills its own part. After the context it holds the parts
        of all ranks, and lives as long as an array refers to it.

    Raises:
        LoaderError: the ranks are in no process group, or cannot map the memory of
            another rank.
    """
    if ranks.world_size == 1:
        yield SharedMemory(np.empty(num_bytes, np.uint8), 0, 1)
        return
    if not distributed.is_initialized():
        raise LoaderError(
            f"{ranks.world_size} ranks share memory, but torch.distributed is not "
            "initialized; call init_process_group before, or take cache none"
        )
    # Each rank offers memory, which costs nothing before it is written to. The ranks of
    # a machine map that of their first.
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
    """Identify the processes that see each other in /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return boot, Path("/proc/self/ns/pid").stat().st_ino


def _map(path: Path, num_bytes: int) -> npt.NDArray[np.uint8]:
    try:
        with path.open("r+b") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), num_bytes), np.uint8)
    except OSError as error:
        raise LoaderError(
            "cannot map the memory of another rank on this machine "
            f"({error.strerror}); take --cache none, or start all ranks by one user"
        ) from error
