"""The order is a pure function; ranks share a split without overlap or loss."""

from __future__ import annotations

import numpy as np
import pytest

from ichfast.sampler import Sampler

SLICES_N = np.arange(1009) * 3  # a prime number of slices, not 0, 1, 2


def sampler(*, shuffle: bool, rank: int = 0, world_size: int = 1) -> Sampler:
    return Sampler(
        slices_N=SLICES_N,
        batch_size=16,
        shuffle=shuffle,
        seed=5,
        rank=rank,
        world_size=world_size,
    )


def test_validation_keeps_order_and_ends_on_a_short_batch() -> None:
    order = sampler(shuffle=False)
    batches = [order.batch(order.order(0), k) for k in range(len(order))]
    assert [len(batch) for batch in batches] == [16] * 63 + [1]
    np.testing.assert_array_equal(np.concatenate(batches), SLICES_N)
    assert len(order.batch(order.order(0), len(order))) == 0


def test_training_shuffles_anew_each_epoch_and_repeats_for_the_same_epoch() -> None:
    order = sampler(shuffle=True)
    first, second = order.order(0), order.order(1)
    assert len(first) == order.num_slices == 63 * 16
    assert len(set(first)) == len(first)
    assert (first != second).any()
    np.testing.assert_array_equal(first, sampler(shuffle=True).order(0))


@pytest.mark.parametrize("world_size", range(1, 9))
def test_ranks_are_disjoint_and_validation_is_complete(world_size: int) -> None:
    for shuffle in (True, False):
        ranks = [
            sampler(shuffle=shuffle, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        seen = np.concatenate([each.order(2) for each in ranks])
        assert len(set(seen)) == len(seen)
        if shuffle:
            assert len({len(each) for each in ranks}) == 1
            assert len(seen) == len(ranks[0]) * 16 * world_size
            assert len(SLICES_N) - len(seen) < 16 * world_size
        else:
            assert sorted(seen) == SLICES_N.tolist()


def test_a_seed_gives_an_order_of_its_own() -> None:
    other = Sampler(slices_N=SLICES_N, batch_size=16, shuffle=True, seed=6)
    assert (other.order(0) != sampler(shuffle=True).order(0)).any()
