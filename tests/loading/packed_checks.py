"""Packed slices against raw ones, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.loading.batch import Batch
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import make_loader
from ichfast.packed import pack
from ichfast.store.store import Store
from tests.loading.contracts import order_of, same_images

AUGMENT = AugmentConfig(
    flip_probability=0.5, max_rotation_deg=30, max_zoom=1.4, max_warp=0.2
)


def load(
    store: Store, slices_N: npt.NDArray[np.int64], config: DataConfig, device: str
) -> list[Batch]:
    """Load an epoch, the rest of another one, and one of larger images.

    Args:
        store: raw or packed.
        slices_N: store positions.
        config: of the loader.
        device: ``cpu`` or ``cuda``.
    """
    with make_loader(
        store, slices_N, config, augment=AUGMENT, shuffle=True, device=device
    ) as loader:
        batches = [*loader.epoch(0), *loader.epoch(3, first_batch=1)]
        loader.set_size(3 * config.size)
        return [*batches, *loader.epoch(4)]


def check_batches(
    raw: Store,
    packed: Store,
    slices_N: npt.NDArray[np.int64],
    configs: Sequence[DataConfig],
    *,
    device: str,
) -> None:
    """Compare batches of a packed store with those of a raw one without a cache.

    Args:
        raw: the store.
        packed: a store of the same slices.
        slices_N: store positions.
        configs: for the packed store; they differ in the cache alone.
        device: ``cpu`` or ``cuda``.
    """
    uncached = replace(configs[0], cache="none")
    expected = load(raw, slices_N, uncached, device)
    for config in configs:
        found = load(packed, slices_N, config, device)
        assert order_of(found) == order_of(expected)
        assert all(map(same_images, found, expected))


def upload_records(
    slices: Sequence[npt.NDArray[np.uint16]],
    order_B: Sequence[int],
    device: str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pack slices into a device's memory.

    Args:
        slices: of one shape.
        order_B: numbers of the slices of a batch.
        device: ``cpu`` or ``cuda``.

    Returns:
        The memory, and where the record of each slice of the batch begins, and its
        size, as `unpack_slices` takes them.
    """
    records = [pack(stored_HW) for stored_HW in slices]
    sizes = torch.tensor([len(record) for record in records])
    at = sizes.cumsum(0) - sizes
    memory = torch.frombuffer(bytearray(b"".join(records)), dtype=torch.uint8)
    return (
        memory.to(device),
        at[order_B].to(device),
        sizes[order_B].int().to(device),
    )
