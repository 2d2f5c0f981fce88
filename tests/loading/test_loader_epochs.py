"""An epoch visits each slice once, and a slice's augmentation depends on it alone.

There are 1,009 slices, a prime: no batch size and no number of ranks divides it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.augment.config import EXP_30
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.loading.contracts import check_loader, check_ranks, order_of
from tests.store.slice_store import simple_rows, write_slices

NUM_SLICES = 1009
EVERY_SLICE = np.arange(NUM_SLICES)
AUGMENT = replace(EXP_30, cutout_side=(2, 5))  # larger holes would cover 32 pixels


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of 1,009 slices of 36x40, no two alike."""
    path = tmp_path_factory.mktemp("many") / "store"
    rng = np.random.default_rng(1)
    slices = list(rng.integers(1000, 1150, (NUM_SLICES, 36, 40)).astype(np.uint16))
    labels_NK = rng.integers(0, 2, (NUM_SLICES, 6))
    write_slices(path, slices, simple_rows(NUM_SLICES), labels_NK, levels=(512,))
    with Store(path) as store:
        yield store


def loader_of(store: Store, *, batch_size: int = 64, **options: Any) -> DaliLoader:
    config = DataConfig(size=32, batch_size=batch_size)
    return make_loader(store, EVERY_SLICE, config, augment=AUGMENT, seed=4, **options)


def images_by_slice(loader: DaliLoader, epoch: int = 2) -> dict[int, torch.Tensor]:
    """Copies of each slice's image in an epoch, by store position."""
    return {
        int(position): image.clone()
        for batch in loader.epoch(epoch)
        for position, image in zip(batch.indices_B, batch.images_BCHW, strict=True)
    }


@pytest.fixture(scope="module")
def images(many: Store) -> dict[int, torch.Tensor]:
    """Each slice's image in epoch 2, loaded in order in batches of 64."""
    with loader_of(many) as loader:
        return images_by_slice(loader)


def check_same_images(
    found: dict[int, torch.Tensor], images: dict[int, torch.Tensor]
) -> None:
    assert all(torch.equal(image, images[k]) for k, image in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_loader_keeps_its_promises_on_many_slices(
    many: Store, *, shuffle: bool
) -> None:
    with loader_of(many, batch_size=128, shuffle=shuffle) as loader:
        check_loader(loader, EVERY_SLICE.tolist(), batch_size=128, shuffle=shuffle)


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_slices_and_augment_each_as_one_rank_does(
    many: Store, images: dict[int, torch.Tensor], world_size: int, *, shuffle: bool
) -> None:
    orders = []
    for rank in range(world_size):
        with loader_of(
            many, batch_size=32, shuffle=shuffle, ranks=Ranks(rank, world_size)
        ) as loader:
            found = images_by_slice(loader)
            assert len(found) == loader.num_slices
        orders.append(list(found))
        check_same_images(found, images)
    check_ranks(orders, EVERY_SLICE.tolist(), batch_size=32, shuffle=shuffle)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 1009, 2000])
def test_a_slice_looks_the_same_in_a_batch_of_any_size(
    many: Store, images: dict[int, torch.Tensor], batch_size: int
) -> None:
    with loader_of(many, batch_size=batch_size) as loader:
        found = images_by_slice(loader)
    assert len(found) == NUM_SLICES
    check_same_images(found, images)


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_a_slice_looks_the_same_with_any_number_of_threads(
    many: Store,
    images: dict[int, torch.Tensor],
    num_threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(num_threads)))
    with loader_of(many, shuffle=True) as loader:
        check_same_images(images_by_slice(loader), images)


def test_a_slice_looks_the_same_after_resuming_and_another_in_another_epoch(
    many: Store, images: dict[int, torch.Tensor]
) -> None:
    with loader_of(many, shuffle=True) as loader:
        whole = order_of(list(loader.epoch(2)))
    with loader_of(many, shuffle=True) as resumed:  # a new loader, as after a crash
        rest = list(resumed.epoch(2, first_batch=11))
        assert order_of(rest) == whole[11 * 64 :]
        for batch in rest:
            for position, image in zip(batch.indices_B, batch.images_BCHW, strict=True):
                assert torch.equal(image, images[int(position)])
        other = images_by_slice(resumed, epoch=3)
    assert not any(torch.equal(image, images[k]) for k, image in other.items())
