"""A cache keeps the split, or a rank's part of it, with the neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.loading import slice_source
from ichfast.loading.config import DataConfig
from ichfast.loading.sampler import Sampler
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks

SLICES_N = np.arange(2, 17, 3)
"""Five slices; the first series of the store ends with slice 6."""


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Store positions that caches were made for; no GPU is needed."""
    asked: list[list[int]] = []

    def note(
        _level: StoreLevel,
        kept_R: npt.NDArray[np.int64],
        **_options: Any,
    ) -> None:
        asked.append(kept_R.tolist())

    monkeypatch.setattr(slice_source, "HostSlices", note)
    monkeypatch.setattr(slice_source, "DeviceSlices", note)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return asked


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether caches that were made keep records; no GPU is needed."""
    asked: list[bool] = []

    def note(*_: Any, packed: bool, **_options: Any) -> None:
        asked.append(packed)

    monkeypatch.setattr(slice_source, "HostSlices", note)
    monkeypatch.setattr(slice_source, "DeviceSlices", note)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return asked


def make(store: Store, *, shuffle: bool, on_gpu: bool = True, **settings: Any) -> None:
    ranks = Ranks(1, 2)
    sampler = Sampler(
        slices_N=SLICES_N, batch_size=1, shuffle=shuffle, rank=1, world_size=2
    )
    slice_source.make_slice_source(
        StoreLevel(store, 256, "first"),
        sampler,
        DataConfig(**settings),
        on_gpu=on_gpu,
        ranks=ranks,
    )


def test_a_device_keeps_a_whole_training_split_but_a_part_for_validation(
    tiny_store: Store, kept: list[list[int]]
) -> None:
    make(tiny_store, cache="device", shuffle=True)
    make(tiny_store, cache="device", shuffle=False)
    assert kept == [[2, 5, 8, 11, 14], [5, 11]]


def test_host_memory_keeps_the_slices_of_all_ranks(
    tiny_store: Store, kept: list[list[int]]
) -> None:
    for cache, on_gpu in (("host", True), ("host", False), ("device", False)):
        make(tiny_store, cache=cache, shuffle=False, on_gpu=on_gpu)
    assert kept == [SLICES_N.tolist()] * 3


def test_neighbours_are_kept_too_and_each_slice_once(
    tiny_store: Store, kept: list[list[int]]
) -> None:
    make(tiny_store, cache="host", shuffle=False, neighbours=1)
    # 6 and 7 are in different series, and so are 11 and 12.
    assert kept == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15]]


@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_packed_store_is_kept_packed_unless_that_is_switched_off(
    packed_store: Store, tiny_store: Store, packed: list[bool], cache: str
) -> None:
    make(packed_store, cache=cache, shuffle=False)
    make(packed_store, cache=cache, shuffle=False, cache_packed=False)
    make(tiny_store, cache=cache, shuffle=False)
    assert packed == [True, False, False]
