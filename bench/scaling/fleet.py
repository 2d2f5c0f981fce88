"""A model of training on many GPUs: each part's rate, and which part is the slowest.

Every slice comes from storage into a machine, through its loader, up to a GPU and
through the network. A job is as fast as the slowest of the four, so:

1. Machines share nothing but what is stated as shared (`Storage.shared_*`).
2. Nothing is kept between epochs: each slice is read from storage again.
3. The exchange of gradients costs nothing. It overlaps with the backward pass, and what
   it leaves is not modelled.

All rates are slices a second of the whole job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """Where the store lies, as the machines see it."""

    name: str
    node_bytes_per_s: float
    """What reaches one machine, bytes a second."""

    shared_bytes_per_s: float = math.inf
    """What all machines get together, bytes a second."""

    shared_slices_per_s: float = math.inf
    """Requests of one slice that all machines get answered, a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine, and what it does with a slice."""

    gpus: int
    """In one machine."""

    slice_bytes: int
    """Of a stored slice."""

    loader_per_gpu: float
    """Slices a second that the cores of one GPU load."""

    upload_bytes_per_s: float
    """Up to one GPU, bytes a second."""

    gpu_per_s: float | None
    """Slices a second that one GPU trains; None if nobody knows."""


def part_rates(storage: Storage, node: Node, num_gpus: int) -> dict[str, float]:
    """What each part could do if the others were infinitely fast.

    Args:
        storage: where the store lies.
        node: what each machine is.
        num_gpus: 1 or more; machines are filled one after the other.

    Returns:
        Slices a second for ``storage``, ``loader``, ``upload`` and, if known, ``GPU``.
    """
    num_nodes = math.ceil(num_gpus / node.gpus)
    total_bytes_per_s = min(
        num_nodes * storage.node_bytes_per_s, storage.shared_bytes_per_s
    )
    rates = {
        "storage": min(
            total_bytes_per_s / node.slice_bytes, storage.shared_slices_per_s
        ),
        "loader": num_gpus * node.loader_per_gpu,
        "upload": num_gpus * node.upload_bytes_per_s / node.slice_bytes,
    }
    if node.gpu_per_s is not None:
        rates["GPU"] = num_gpus * node.gpu_per_s
    return rates


def bottleneck(rates: Mapping[str, float]) -> tuple[str, float]:
    """The slowest part and its rate; of equal ones the first."""
    return min(rates.items(), key=lambda part: part[1])
