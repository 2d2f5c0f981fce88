"""A model of training on many GPUs: the rate of each part, and the slowest part.

Every slice goes from storage into a machine, through its loader, to a GPU and through
the network. A job is as fast as the slowest of the four. Assumptions:

1. Machines share only what `Storage.shared_*` names.
2. No slice stays in memory between epochs: each is read from storage again.
3. The exchange of gradients costs nothing: it overlaps with the backward pass.

All rates are slices per second of the whole job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """The storage of the store, as the machines see it."""

    name: str
    node_bytes_per_s: float
    """Rate to one machine, bytes per second."""

    shared_bytes_per_s: float = math.inf
    """Rate to all machines together, bytes per second."""

    shared_slices_per_s: float = math.inf
    """Requests of one slice that all machines can make together, per second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine and its rates."""

    gpus: int
    """GPUs in one machine."""

    slice_bytes: int
    """Bytes of a slice's pixels, which are uploaded."""

    stored_bytes: float
    """Bytes of a slice in the store, which are read; fewer if it is packed."""

    loader_per_gpu: float
    """Slices per second that the cores of one GPU load."""

    upload_bytes_per_s: float
    """Rate to one GPU, bytes per second."""

    gpu_per_s: float | None
    """Slices per second that one GPU trains; None if unknown."""


def part_rates(storage: Storage, node: Node, num_gpus: int) -> dict[str, float]:
    """Compute the rate of each part if the others were infinitely fast.

    Args:
        storage: The storage of the store.
        node: The machines.
        num_gpus: 1 or more; machines are filled one after the other.

    Returns:
        Slices per second of ``storage``, ``loader``, ``upload`` and, if known, ``GPU``.
    """
    num_nodes = math.ceil(num_gpus / node.gpus)
    total_bytes_per_s = min(
        num_nodes * storage.node_bytes_per_s, storage.shared_bytes_per_s
    )
    rates = {
        "storage": min(
            total_bytes_per_s / node.stored_bytes, storage.shared_slices_per_s
        ),
        "loader": num_gpus * node.loader_per_gpu,
        "upload": num_gpus * node.upload_bytes_per_s / node.slice_bytes,
    }
    if node.gpu_per_s is not None:
        rates["GPU"] = num_gpus * node.gpu_per_s
    return rates


def bottleneck(rates: Mapping[str, float]) -> tuple[str, float]:
    """Find the slowest part and its rate; the first of equal ones."""
    return min(rates.items(), key=lambda part: part[1])
