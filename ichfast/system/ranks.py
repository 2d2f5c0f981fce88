"""The processes that work together, one per device, started by `torchrun`.

1. Without torchrun there is one rank, and nothing here waits.
2. All ranks take the same path: before one stops, saves or fails, all `agree`.
3. When a rank dies, the others end with a message within `TIMEOUT`.
4. Only the rank that `writes` writes files and log lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ichfast.errors import DeviceError, IchfastError, TrainError, first_line

TIMEOUT = timedelta(minutes=5)
"""How long a rank waits for another. Work of a single rank, such as saving a
checkpoint, takes less."""

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets for a rank."""

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Environment variables in which torchrun and Slurm count restarts of this job."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process and the others that work together."""

    rank: int = 0
    """Number of this process, from 0."""

    world_size: int = 1
    """Number of processes."""

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes checkpoints, metrics and lines."""
        return self.rank == 0

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is set on any rank; equal on every rank."""
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return [each for each in values if each is not None]

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the first rank's buffers, such as batch norm's, to all ranks."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)


def was_restarted() -> bool:
    """Whether torchrun or Slurm has restarted this job after a failure."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)


@contextmanager
def join_ranks(
    device: str, *, advice: str = "start again with --resume"
) -> Iterator[Ranks]:
    """Join the other ranks started by torchrun, and leave them when the block ends.

    GPU tensors are sent with NCCL, CPU tensors with gloo. Each rank takes the GPU with
    its local rank.

    Args:
        device: ``auto``, ``cuda`` or ``cpu``, as for `choose_device`.
        advice: what to do when a rank was lost.

    Raises:
        DeviceError: this machine has fewer GPUs than ranks.
        TrainError: the others cannot be reached, or one of them was lost.
    """
    if not all(name in os.environ for name in TORCHRUN):
        yield Ranks()
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=TIMEOUT,
            store=_meeting_place(),
            rank=rank,
            world_size=world_size,
        )
    except (RuntimeError, ValueError) as error:
        raise TrainError(
            f"rank {rank} cannot reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {_reason(error)}; check the rendezvous "
            "options of torchrun and the network between the machines"
        ) from error
    # After an error, do not wait: the other ranks notice the end of this process.
    try:
        yield Ranks(rank, world_size)
    except IchfastError as error:
        raise type(error)(f"rank {rank}: {error}") from error
    except RuntimeError as error:
        if not _lost_a_rank(error):
            raise
        raise TrainError(
            f"rank {rank} lost another rank, whose own message says why "
            f"({_reason(error)}); {advice}"
        ) from error
    distributed.destroy_process_group()


def _meeting_place() -> Store:
    """The store in which ranks exchange their addresses."""
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    # On one machine torchrun keeps the store across restarts, with the addresses of
    # dead ranks: pytorch/pytorch#135712. On several machines restart counts differ:
    # pytorch/pytorch#108158; see docs/machines.md.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"attempt-{attempt}", store)


def _take_gpu(local_rank: int) -> None:
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise DeviceError(
            f"rank {local_rank} of this machine has no GPU, there are {num_gpus}; "
            "start one rank a GPU with torchrun --nproc-per-node gpu"
        )
    torch.cuda.set_device(local_rank)


def _lost_a_rank(error: RuntimeError) -> bool:
    # gloo raises a bare RuntimeError.
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in text or "nccl" in text


def _reason(error: Exception) -> str:
    """Torch's message without its source location and its advice."""
    return re.sub(r"^\[\S+\] ", "", first_line(error)).split(". ")[0]
