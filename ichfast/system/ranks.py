"""The processes that train together, one a device; `torchrun` starts them.

1. Without torchrun there is one rank, and nothing here waits for anybody.
2. All ranks take the same way: whoever is to stop, save or fail asks `agree`.
3. When a rank dies the others end as well, with a message, within `TIMEOUT`.
4. One rank writes files and lines: the one that `writes`.
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
"""How long a rank waits for another one. Nothing that one rank does alone, such as
saving a checkpoint, takes longer."""

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a rank in its environment."""

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""How often torchrun, or Slurm after a requeue, has started this job again."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes checkpoints, metrics and lines."""
        return self.rank == 0

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether any rank raised it; the same answer on every rank."""
        if self.world_size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return [each for each in values if each is not None]

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of the first, such as batch norm's statistics."""
        if self.world_size > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, src=0)


def was_restarted() -> bool:
    """Whether torchrun or Slurm started this job again after it had failed."""
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Meet the other ranks that torchrun started, and leave them in the end.

    Tensors on a GPU travel by NCCL, those on the CPU by gloo. Each rank gets the
    GPU of its number on its machine.

    Args:
        device: ``auto``, ``cuda`` or ``cpu``, as `choose_device` takes it.

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
    # After an error nothing is waited for: the end of the process tells the others.
    try:
        yield Ranks(rank, world_size)
    except IchfastError as error:
        raise type(error)(f"rank {rank}: {error}") from error
    except RuntimeError as error:
        if not _lost_a_rank(error):
            raise
        raise TrainError(
            f"rank {rank} lost another rank, whose own message says why "
            f"({_reason(error)}); start again with --resume"
        ) from error
    distributed.destroy_process_group()


def _meeting_place() -> Store:
    """Where ranks leave their addresses for each other."""
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    # On one machine torchrun keeps the store when it starts the ranks again, with
    # the addresses of the dead: pytorch/pytorch#135712. (On several the count is
    # not the same everywhere, pytorch/pytorch#108158; see docs/training.md.)
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
    """What torch says, without the place in its source and its advice."""
    return re.sub(r"^\[\S+\] ", "", first_line(error)).split(". ")[0]
