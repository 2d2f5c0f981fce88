"""A packed store gives the bits of a raw one, from the disk and out of every cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.augment.reference import halve
from ichfast.errors import LoaderError, StoreError
from ichfast.loading import cache
from ichfast.loading.cache import DeviceSlices, HostSlices
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import make_loader
from ichfast.loading.prefetch import ReadAhead, SliceRequest
from ichfast.loading.slice_source import SliceSource
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.loading.cuda_sources import CppKernel, record_launch
from tests.loading.packed_checks import check_batches
from tests.store.slice_store import simple_rows, write_slices

CPU = torch.device("cpu")
WIDE = np.r_[0:12, 18:29]
"""Store positions of the slices of 512x512."""


def read_from_disk(level: StoreLevel) -> SliceSource:
    return ReadAhead(level, pinned=False)


def keep_on_host(level: StoreLevel, *, packed: bool = True) -> HostSlices:
    kept_R = np.arange(len(level.store))
    return HostSlices(level, kept_R, packed=packed, pinned=False, ranks=Ranks())


def keep_on_device(
    level: StoreLevel, *, packed: bool = True, device: torch.device = CPU
) -> DeviceSlices:
    return DeviceSlices(level, WIDE, packed=packed, device=device, ranks=Ranks())


def keep_on_host_unpacked(level: StoreLevel) -> SliceSource:
    return keep_on_host(level, packed=False)


def keep_on_device_unpacked(level: StoreLevel) -> SliceSource:
    return keep_on_device(level, packed=False)


def expected_HW(
    raw: Store, position: int, level: int, halvings: int
) -> npt.NDArray[np.uint16]:
    stored_HW = raw.slice_HW(position, level)
    for _ in range(halvings):
        stored_HW = halve(stored_HW)
    return stored_HW


def check_source(raw: Store, source: SliceSource, level: int) -> None:
    """Take two batches of two feeds; slices on a device are of one shape and whole."""
    on_device = isinstance(source, DeviceSlices)
    other = 18 if on_device else 13
    for halvings in ([0, 2, 1], [0, 0, 0], [3, 1, 1]):
        halvings_B = np.array(halvings) * (not on_device)
        batch = [
            SliceRequest(np.array([0, other, 3]), halvings_B),
            SliceRequest(np.array([other, 28, 3]), halvings_B),
        ]
        source.request(batch)
        for feed, slices in zip(batch, source.take(), strict=True):
            places = zip(feed.positions_B, feed.halvings_B, slices, strict=True)
            for position, times, stored_HW in places:
                np.testing.assert_array_equal(
                    np.asarray(stored_HW).view(np.uint16),
                    expected_HW(raw, int(position), level, int(times)),
                )
        source.release()
    source.discard()
    source.close()


@pytest.mark.parametrize(
    ("make", "check"),
    [
        (read_from_disk, "first"),
        (read_from_disk, "always"),
        (read_from_disk, "never"),
        (keep_on_host, "first"),
        (keep_on_host, "never"),
        (keep_on_host_unpacked, "first"),
        (keep_on_device, "first"),
        (keep_on_device_unpacked, "first"),
    ],
)
@pytest.mark.parametrize("level", [512, 256])
def test_slices_of_a_packed_store_are_those_of_a_raw_one(
    tiny_store: Store,
    packed_store: Store,
    make: Callable[[StoreLevel], SliceSource],
    check: str,
    level: int,
) -> None:
    source = make(StoreLevel(packed_store, level, check))
    check_source(tiny_store, source, level)


@pytest.mark.parametrize("level", [512, 256])
def test_the_kernels_of_a_gpu_unpack_the_slices_of_a_raw_store(
    tiny_store: Store,
    packed_store: Store,
    level: int,
    unpack_kernels: Mapping[str, CppKernel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_launch(monkeypatch, unpack_kernels)
    source = keep_on_device(StoreLevel(packed_store, level, "first"))
    check_source(tiny_store, source, level)


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("level", [512, 256])
def test_batches_of_a_packed_store_are_those_of_a_raw_one(
    tiny_store: Store, packed_store: Store, level: int, neighbours: int
) -> None:
    config = DataConfig(size=48, batch_size=4, level=level, neighbours=neighbours)
    configs = [
        config,
        replace(config, cache="host"),
        replace(config, cache="device", cache_packed=False),
    ]
    slices_N = np.arange(3, 25, 2)
    check_batches(tiny_store, packed_store, slices_N, configs, device="cpu")


@pytest.mark.parametrize("kept", ["none", "host"])
def test_a_record_damaged_on_the_disk_is_refused_for_any_check(
    packed_store_path: Path, tmp_path: Path, kept: str
) -> None:
    copied = Path(shutil.copytree(packed_store_path, tmp_path / "store"))
    file = copied / "level-256" / "00000.icp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    config = DataConfig(size=64, batch_size=29, level=256, check="never", cache=kept)
    with (
        Store(copied) as store,
        pytest.raises(StoreError, match=r"level-256/00000\.icp is damaged: row "),
        make_loader(store, np.arange(29), config) as loader,
    ):
        list(loader)


@pytest.mark.parametrize("keep", [keep_on_host, keep_on_device])
def test_records_damaged_in_memory_are_refused(
    packed_store: Store, keep: Callable[[StoreLevel], HostSlices | DeviceSlices]
) -> None:
    source = keep(StoreLevel(packed_store, 256, "first"))
    source._memory[source._layout.part(9)][100] ^= 1
    source.request([SliceRequest.unhalved(np.array([9]))])
    with pytest.raises((LoaderError, StoreError), match=r"damaged.*its CRC-32C is "):
        source.take()
    source.close()


def test_records_damaged_on_a_gpu_are_refused_at_the_end_of_the_epoch(
    packed_store: Store,
    unpack_kernels: Mapping[str, CppKernel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_launch(monkeypatch, unpack_kernels)
    source = keep_on_device(StoreLevel(packed_store, 256, "first"))
    source._memory[source._layout.part(9)][16] += 1  # where the first row's payload is
    for positions in ([3, 9], [9, 9], [4]):
        source.request([SliceRequest.unhalved(np.array(positions))])
        source.take()
    with pytest.raises(LoaderError, match=r"^3 packed slices were damaged in the mem"):
        source.discard()
    source.discard()
    source.close()


@pytest.mark.parametrize("can_unpack", [True, False])
def test_a_gpu_that_cannot_unpack_keeps_slices_unpacked(
    packed_store: Store, monkeypatch: pytest.MonkeyPatch, *, can_unpack: bool
) -> None:
    monkeypatch.setattr(
        cache, "load_kernels", lambda _: {"gather": 1} if can_unpack else {}
    )
    level = StoreLevel(packed_store, 256, "first")
    source = keep_on_device(level, device=torch.device("meta"))
    num_bytes = packed_store.record_bytes_N(256)[WIDE].sum()
    num_pixels = num_bytes // 2 if can_unpack else len(WIDE) * 256 * 256
    assert source._memory.numel() == num_pixels


@pytest.mark.slow
def test_a_packed_cache_of_real_slices_takes_three_tenths_of_the_memory(
    real_slices: list[npt.NDArray[np.uint16]], tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = simple_rows(len(real_slices))
    labels_NK = np.zeros((len(rows), 6))
    write_slices(tmp_path / "store", real_slices, rows, labels_NK, packed=True)
    with Store(tmp_path / "store") as store:
        sources = [
            keep_on_host(StoreLevel(store, 512, "first"), packed=packed)
            for packed in (True, False)
        ]
        packed_bytes, raw_bytes = (source._memory.nbytes for source in sources)
        assert packed_bytes <= 0.3 * raw_bytes
        for source in sources:
            source.close()
