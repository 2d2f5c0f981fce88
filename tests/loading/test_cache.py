"""Slices kept in memory equal the store's; a set that does not fit is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.augment.reference import halve
from ichfast.errors import LoaderError
from ichfast.loading import cache, prefetch
from ichfast.loading.cache import DeviceSlices, HostSlices
from ichfast.loading.prefetch import SliceRequest
from ichfast.loading.slice_source import SliceSource
from ichfast.loading.store_level import StoreLevel
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks

KEPT_R = np.array([1, 4, 9, 20, 28])
CPU = torch.device("cpu")


@pytest.fixture(params=["tiny_store", "packed_store"])
def store(request: pytest.FixtureRequest) -> Store:
    """The slices of `tests.conftest.SERIES`, raw and packed."""
    found: Store = request.getfixturevalue(request.param)
    return found


def keep_on_host(
    store: Store, level: int, kept_R: npt.NDArray[np.int64] = KEPT_R
) -> SliceSource:
    return HostSlices(
        StoreLevel(store, level, "first"),
        kept_R,
        packed=store.is_packed,
        pinned=False,
        ranks=Ranks(),
    )


def keep_on_device(
    store: Store, level: int, kept_R: npt.NDArray[np.int64] = KEPT_R
) -> SliceSource:
    return DeviceSlices(
        StoreLevel(store, level, "first"),
        kept_R,
        packed=store.is_packed,
        device=CPU,
        ranks=Ranks(),
    )


@pytest.mark.parametrize("keep", [keep_on_host, keep_on_device])
def test_kept_slices_come_in_the_order_requested_and_as_stored(
    store: Store,
    keep: Callable[[Store, int], SliceSource],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "CHUNK_SLICES", 2)
    source = keep(store, 256)
    source.request(
        [
            SliceRequest.unhalved(np.array([28, 4, 4])),
            SliceRequest.unhalved(np.array([1])),
        ]
    )
    source.request([SliceRequest.unhalved(np.array([9]))])
    for expected in ([[28, 4, 4], [1]], [[9]]):
        taken = source.take()
        assert len(taken) == len(expected)
        for slices, positions in zip(taken, expected, strict=True):
            for stored_HW, position in zip(slices, positions, strict=True):
                np.testing.assert_array_equal(
                    np.asarray(stored_HW), store.slice_HW(position, 256)
                )
        source.release()
    source.request([SliceRequest.unhalved(np.array([20]))])
    source.discard()
    source.close()


def test_batches_on_the_device_are_held_until_released_oldest_first(
    store: Store,
) -> None:
    source = keep_on_device(store, 256)
    for position in (1, 4):
        source.request([SliceRequest.unhalved(np.array([position]))])
    first, second = (weakref.ref(source.take()[0]) for _ in range(2))
    assert first() is not None
    source.release()
    assert first() is None
    assert second() is not None
    source.close()
    assert second() is None


@pytest.mark.parametrize("keep", [keep_on_host, keep_on_device])
def test_the_memory_is_filled_two_chunks_at_a_time(
    store: Store,
    keep: Callable[..., SliceSource],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laid_out = set()
    lay_out = prefetch._Buffer.lay_out

    def note(
        buffer: prefetch._Buffer, shape_B2: npt.NDArray[np.int64]
    ) -> prefetch.Slices:
        laid_out.add(buffer)
        return lay_out(buffer, shape_B2)

    monkeypatch.setattr(cache, "CHUNK_SLICES", 2)
    monkeypatch.setattr(prefetch._Buffer, "lay_out", note)
    keep(store, 256, np.arange(29)).close()
    assert len(laid_out) == 2


def test_host_memory_keeps_slices_of_all_shapes(store: Store) -> None:
    kept_R = np.arange(29)
    source = keep_on_host(store, 512, kept_R)
    source.request([SliceRequest.unhalved(kept_R)])
    (slices,) = source.take()
    for position, stored_HW in enumerate(slices):
        np.testing.assert_array_equal(stored_HW, store.slice_HW(position))
    source.close()


def test_host_memory_halves_slices_as_often_as_requested(store: Store) -> None:
    source = keep_on_host(store, 512, np.arange(29))
    source.request([SliceRequest(np.array([0, 13, 0]), np.array([2, 1, 0]))])
    ((twice_HW, once_HW, whole_HW),) = source.take()
    stored_HW = store.slice_HW(0)
    np.testing.assert_array_equal(twice_HW, halve(halve(stored_HW)))
    np.testing.assert_array_equal(once_HW, halve(store.slice_HW(13)))
    np.testing.assert_array_equal(whole_HW, stored_HW)
    source.release()
    source.close()


def test_slices_halved_to_one_shape_come_in_one_array(store: Store) -> None:
    source = keep_on_host(store, 512, np.arange(29))
    source.request([SliceRequest(np.array([0, 3]), np.array([1, 1]))])
    (halved_BHW,) = source.take()
    assert isinstance(halved_BHW, np.ndarray)
    np.testing.assert_array_equal(halved_BHW[1], halve(store.slice_HW(3)))
    source.close()


def test_the_device_keeps_slices_of_one_shape_only(tiny_store: Store) -> None:
    with pytest.raises(
        LoaderError,
        match=r"at level 512 23 are 512x512 and 6 are not: take data\.level=256",
    ):
        keep_on_device(tiny_store, 512, np.arange(29))


@pytest.mark.parametrize(
    ("packed_store_is_read", "level", "message"),
    [
        (False, 256, r"pack the store, to a third, with `ichfast pack \S+/store NEW`$"),
        (False, 512, r"NEW`, or read a quarter of the bytes with data\.level=256$"),
        (True, 256, r"them packed in 0\.2 GiB \(data\.cache_packed=true, .* CuPy\)$"),
        (True, 512, r"CuPy\), or read a quarter of the bytes with data\.level=256$"),
    ],
)
def test_slices_that_do_not_fit_are_refused_with_what_would(
    tiny_store: Store,
    packed_store: Store,
    level: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    packed_store_is_read: bool,
) -> None:
    monkeypatch.setattr(cache, "available_memory", lambda: 5 * 2**20 // 9)
    monkeypatch.setattr(cache, "GIB", 2**20)
    store = packed_store if packed_store_is_read else tiny_store
    with pytest.raises(LoaderError, match=message):
        HostSlices(
            StoreLevel(store, level, "first"),
            KEPT_R,
            packed=False,
            pinned=False,
            ranks=Ranks(),
        )


def test_slices_that_do_not_fit_are_refused_with_both_figures(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "available_memory", lambda: 5 * 2**20 // 9)
    monkeypatch.setattr(cache, "GIB", 2**20)
    with pytest.raises(
        LoaderError, match=r"take 0\.6 GiB, host memory can spare 0\.5 GiB; take --c"
    ):
        keep_on_host(tiny_store, 256)
