"""Ranks that train together on this machine, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from ichfast.system.ranks import join_ranks

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([__name__, "tests.training.tiny_trainer"])


def run_ranks(
    world_size: int, target: Callable[..., None], *arguments: Any, device: str = "cpu"
) -> list[str | None]:
    """Run `target(ranks, *arguments)` on each rank.

    Args:
        world_size: number of ranks.
        target: called in a process for each rank.
        arguments: passed on.
        device: ``cuda`` joins the ranks over NCCL, one per GPU; else over gloo.

    Returns:
        For each rank the error it ended with, ``""`` for none, None if it was killed.
    """
    ends = [FORKSERVER.Pipe(duplex=False) for _ in range(world_size)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        FORKSERVER.Process(
            target=_as_rank,
            args=(rank, world_size, port, device, sender, target, arguments),
        )
        for rank, (_, sender) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        process.kill()
        process.join()
    return [receiver.recv() if receiver.poll() else None for receiver, _ in ends]


def _as_rank(
    rank: int,
    world_size: int,
    port: str,
    device: str,
    sender: Connection,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    error = ""
    try:
        with join_ranks(device) as ranks:
            target(ranks, *arguments)
    except Exception as caught:  # noqa: BLE001 - the parent reports it
        error = f"{type(caught).__name__}: {caught}"
    sender.send(error)
