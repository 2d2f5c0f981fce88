"""What every loader promises, as one function to call on any of them."""

from __future__ import annotations

import numpy as np
import torch

from ichfast.batch import Batch, Loader


def check_loader(
    loader: Loader, slices: list[int], *, batch_size: int, shuffle: bool
) -> None:
    """Hold a loader to the promises of `ichfast.batch`, for slices on one rank."""
    num_full, left_over = divmod(len(slices), batch_size)
    first = list(loader.epoch(0))
    assert len(first) == len(loader)
    lengths = [len(batch) for batch in first]
    if shuffle:
        assert lengths == [batch_size] * num_full
    else:
        assert lengths == [batch_size] * num_full + [left_over] * bool(left_over)
    assert sum(lengths) == loader.num_slices

    seen = order_of(first)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(slices)
    if not shuffle:
        assert seen == slices

    second = order_of(list(loader.epoch(1)))
    assert (second != seen) == shuffle
    again = list(loader.epoch(0))
    assert order_of(again) == seen
    assert all(same_images(a, b) for a, b in zip(first, again, strict=True))

    resumed = list(loader.epoch(0, first_batch=1))
    assert order_of(resumed) == order_of(first[1:])
    assert all(same_images(a, b) for a, b in zip(first[1:], resumed, strict=True))

    next(loader.epoch(0))  # left early
    assert order_of(list(loader.epoch(0))) == seen

    for batch in first:
        assert batch.images_BCHW.dtype == torch.float16
        assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
        assert batch.targets_BK.dtype == torch.float32
        assert batch.indices_B.dtype == torch.int64
        assert batch.indices_B.device.type == "cpu"


def order_of(batches: list[Batch]) -> list[int]:
    """Store positions in the order they came."""
    if not batches:
        return []
    return [int(k) for k in np.concatenate([b.indices_B.numpy() for b in batches])]


def same_images(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    targets = [batch.targets_BK.nan_to_num(-1.0) for batch in (first, second)]
    return torch.equal(first.images_BCHW, second.images_BCHW) and torch.equal(*targets)
