"""The promises of every loader, as checks to call on any of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ichfast.loading.batch import Batch, Loader


def check_loader(
    loader: Loader,
    slices: Sequence[int],
    *,
    batch_size: int,
    shuffle: bool,
    repeats_images: bool = True,
) -> None:
    """Check the promises of `ichfast.loading.batch` on one rank.

    Args:
        loader: the loader to check; still usable afterwards.
        slices: store positions it was given, in order.
        batch_size: slices in a full batch.
        shuffle: whether it trains, so that epochs differ and batches are full.
        repeats_images: False for a loader with its own random state; then only order
            and targets must repeat.
    """
    first = list(loader.epoch(0))
    _check_epoch(loader, first, slices, batch_size=batch_size, shuffle=shuffle)

    def check_same(found: list[Batch], expected: list[Batch]) -> None:
        assert order_of(found) == order_of(expected)
        for one, other in zip(found, expected, strict=True):
            assert _same_targets(one, other)
            assert not repeats_images or torch.equal(one.images_BCHW, other.images_BCHW)

    second = list(loader.epoch(1))
    _check_epoch(loader, second, slices, batch_size=batch_size, shuffle=shuffle)
    assert (order_of(second) != order_of(first)) == shuffle
    check_same(list(loader.epoch(0)), first)

    for first_batch in range(1, len(loader) + 1):
        check_same(list(loader.epoch(0, first_batch=first_batch)), first[first_batch:])

    for num_taken in range(1, min(3, len(loader)) + 1):
        left_early = loader.epoch(1)
        for _ in range(num_taken):
            next(left_early)
        check_same(list(loader.epoch(0)), first)
    for abandoned in (loader.epoch(1), loader.epoch(0)):  # two in a row
        next(abandoned)
    check_same(list(loader.epoch(1)), second)


def _check_epoch(
    loader: Loader,
    batches: list[Batch],
    slices: Sequence[int],
    *,
    batch_size: int,
    shuffle: bool,
) -> None:
    """Check that no slice repeats, how the last batch ends, and all types."""
    num_full, left_over = divmod(len(slices), batch_size)
    lengths = [batch.num_slices for batch in batches]
    short = [left_over] * bool(left_over and not shuffle)
    assert lengths == [batch_size] * num_full + short
    assert len(batches) == len(loader)
    assert sum(lengths) == loader.num_slices
    seen = order_of(batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(slices)
    if not shuffle:
        assert seen == list(slices)
    for batch in batches:
        assert len(batch.images_BCHW) == len(batch.targets_BK) == batch.num_slices
        assert batch.images_BCHW.dtype == torch.float16
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets_BK.dtype == torch.float32
        assert batch.indices_B.dtype == torch.int64
        assert batch.indices_B.device.type == "cpu"


def check_ranks(
    orders: Sequence[list[int]],
    slices: Sequence[int],
    *,
    batch_size: int,
    shuffle: bool,
) -> None:
    """Check that the ranks of an epoch are disjoint, and complete together.

    Args:
        orders: store positions that each rank saw, in order.
        slices: store positions they shared.
        batch_size: slices in a full batch on one rank.
        shuffle: whether they train; then less than one batch per rank may be missing.
    """
    seen = [position for order in orders for position in order]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(slices)
    if shuffle:
        assert len({len(order) for order in orders}) == 1
        assert len(slices) - len(seen) < batch_size * len(orders)
    else:
        assert sorted(seen) == sorted(slices)


def order_of(batches: list[Batch]) -> list[int]:
    """Store positions of batches, in order."""
    if not batches:
        return []
    return [int(k) for k in np.concatenate([b.indices_B.numpy() for b in batches])]


def same_images(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal to the bit, targets included."""
    same = torch.equal(first.images_BCHW, second.images_BCHW)
    return same and _same_targets(first, second)


def _same_targets(first: Batch, second: Batch) -> bool:
    targets = [batch.targets_BK.nan_to_num(-1.0) for batch in (first, second)]
    return torch.equal(*targets)
