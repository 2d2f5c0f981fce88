"""Loaders of several ranks on one machine, each in a process with its own cores.

Promises:

1. Between two epochs a rank keeps its loaders open and waits.
2. An error in a rank is raised in the calling process, and no wait is longer than
   `TIMEOUT_S`.
3. `close` ends every process.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection

from bench.harness.measure import BenchError
from bench.peers.task import LoaderTask

TIMEOUT_S = 120.0
"""Longest wait for a rank to start or to load an epoch, seconds."""


class Ranks:
    """Processes that load as the ranks of worlds of several sizes. Close it after use.

    Args:
        task: The work that the ranks of the largest world share. A rank has the same
            number of slices in every world.
        cores: The cores of each rank of the largest world.
        world_sizes: The sizes that `run_epoch` takes.

    Raises:
        BenchError: A rank could not start.
    """

    def __init__(
        self,
        task: LoaderTask,
        cores: Sequence[Sequence[int]],
        world_sizes: Sequence[int],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._processes = []
        self._connections: list[Connection] = []
        for rank, own in enumerate(cores):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_run_rank,
                args=(theirs, task, rank, len(cores), tuple(own), tuple(world_sizes)),
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        try:
            self._collect(len(cores))
        except BenchError:
            self.close()
            raise

    def run_epoch(self, world_size: int) -> int:
        """Let each rank of a world load its next epoch; returns the number of slices.

        Raises:
            BenchError: A rank failed, or took longer than `TIMEOUT_S`.
        """
        for rank, connection in enumerate(self._connections[:world_size]):
            try:
                connection.send(world_size)
            except OSError as error:
                raise BenchError(f"rank {rank} died") from error
        return self._collect(world_size)

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(timeout=10.0)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _collect(self, num_ranks: int) -> int:
        total = 0
        for rank, connection in enumerate(self._connections[:num_ranks]):
            if not connection.poll(TIMEOUT_S):
                raise BenchError(f"rank {rank} did not respond in {TIMEOUT_S:g} s")
            try:
                received = connection.recv()
            except EOFError as error:
                raise BenchError(f"rank {rank} died") from error
            if isinstance(received, str):
                raise BenchError(f"rank {rank} failed: {received}")
            total += received
        return total


def _run_rank(
    connection: Connection,
    task: LoaderTask,
    rank: int,
    num_ranks: int,
    cores: tuple[int, ...],
    world_sizes: tuple[int, ...],
) -> None:
    """Load an epoch for each world size that is received, until the pipe closes."""
    from ichfast.errors import IchfastError
    from ichfast.store.store import Store

    os.sched_setaffinity(0, cores)
    share = len(task.positions_N) // num_ranks
    try:
        with ExitStack() as stack:
            store = stack.enter_context(Store(task.store_path))
            # These take seconds to import: a missing store is reported before them.
            import torch

            from bench.harness.loading import open_loader

            if task.device != "cpu":
                torch.cuda.set_device(rank)
            loaders = {}
            for world_size in (size for size in world_sizes if size > rank):
                own = replace(task, positions_N=task.positions_N[: world_size * share])
                loaders[world_size] = stack.enter_context(
                    open_loader(store, own, rank=rank, world_size=world_size)
                )
            connection.send(0)
            while True:
                loader = loaders[connection.recv()]
                connection.send(sum(batch.num_slices for batch in loader))
    except EOFError:
        pass  # the other end of the pipe is closed
    except IchfastError as error:
        connection.send(str(error))
