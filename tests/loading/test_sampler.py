"""The order is a pure function; ranks share a split without overlap or loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.errors import LoaderError
from ichfast.loading.sampler import (
    SAMPLINGS,
    BalancedSampler,
    Sampler,
    StudySampler,
    make_sampler,
)
from ichfast.store.store import Store

SLICES_N = np.arange(1009) * 3  # a prime number of slices, not 0, 1, 2
ANY_N = (np.arange(1009) % 7 == 2) * 1.0  # 144 of them
STUDY_N = np.repeat(np.arange(31), [1, 2, 3, 5, *[37] * 26, 36])  # 31 studies


def every_slice(**settings: Any) -> Sampler:
    return Sampler(slices_N=SLICES_N, **settings)


def balanced(**settings: Any) -> Sampler:
    return BalancedSampler(slices_N=SLICES_N, any_N=ANY_N, **settings)


def study_wise(**settings: Any) -> Sampler:
    return StudySampler(slices_N=SLICES_N, study_N=STUDY_N, **settings)


Make = Callable[..., Sampler]
NUM_DRAWN = {every_slice: 1009, balanced: 288, study_wise: 31}
"""Slices of a training epoch, before ranks cut it into full batches."""

every_order = pytest.mark.parametrize("make", NUM_DRAWN)
every_world_size = pytest.mark.parametrize("world_size", range(1, 9))


def ranks_of(make: Make, world_size: int, **settings: Any) -> list[Sampler]:
    return [
        make(batch_size=3, seed=5, rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]


# -------------------------------------------------------- promises of every sampler


@every_order
@every_world_size
def test_training_ranks_share_an_epoch_without_overlap(
    make: Make, world_size: int
) -> None:
    ranks = ranks_of(make, world_size, shuffle=True)
    orders = [each.order(2) for each in ranks]
    seen = np.concatenate(orders)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(SLICES_N)
    assert {len(order) for order in orders} == {ranks[0].num_slices}
    assert ranks[0].num_slices == 3 * len(ranks[0])
    assert 0 <= NUM_DRAWN[make] - len(seen) < 3 * world_size


@every_order
@every_world_size
def test_validation_ranks_have_every_slice_once(make: Make, world_size: int) -> None:
    ranks = ranks_of(make, world_size, shuffle=False)
    orders = [each.order(2) for each in ranks]
    assert sorted(np.concatenate(orders)) == SLICES_N.tolist()
    assert [each.num_slices for each in ranks] == [len(order) for order in orders]


@every_order
def test_training_draws_anew_each_epoch_and_repeats_for_the_same_epoch(
    make: Make,
) -> None:
    settings = {"batch_size": 16, "shuffle": True}
    order = make(**settings, seed=5)
    first = order.order(0)
    assert len(first) == order.num_slices == NUM_DRAWN[make] // 16 * 16
    assert (first != order.order(1)).any()
    assert (first != make(**settings, seed=6).order(0)).any()
    np.testing.assert_array_equal(first, make(**settings, seed=5).order(0))


@every_order
def test_validation_keeps_order_and_ends_on_a_short_batch(make: Make) -> None:
    order = make(batch_size=16, shuffle=False)
    batches = [order.batch(order.order(0), k) for k in range(len(order))]
    assert [len(batch) for batch in batches] == [16] * 63 + [1]
    np.testing.assert_array_equal(np.concatenate(batches), SLICES_N)
    assert len(order.batch(order.order(0), len(order))) == 0


# ------------------------------------------------------------------------- balanced


@pytest.mark.parametrize("any_N", [ANY_N, 1 - ANY_N])
def test_a_balanced_epoch_has_the_whole_rarer_kind_and_as_many_others(
    any_N: npt.NDArray[np.float64],
) -> None:
    order = BalancedSampler(slices_N=SLICES_N, any_N=any_N, batch_size=1, shuffle=True)
    kind_of = dict(zip(SLICES_N.tolist(), ANY_N == 1, strict=True))
    first, second = order.order(0), order.order(1)
    assert sum(kind_of[position] for position in first) == 144
    assert {p for p in first if kind_of[p]} == set(SLICES_N[ANY_N == 1])
    assert {p for p in first if not kind_of[p]} != {p for p in second if not kind_of[p]}
    kinds = [bool(kind_of[position]) for position in first]
    assert kinds != sorted(kinds)  # mixed, not one kind after the other
    assert kinds != sorted(kinds, reverse=True)


@pytest.mark.parametrize("has", [True, False])
def test_balance_needs_both_kinds(has: bool) -> None:
    with pytest.raises(LoaderError, match=r"(0 with and 1009|1009 with and 0) without"):
        BalancedSampler(
            slices_N=SLICES_N,
            any_N=np.full(1009, float(has)),
            batch_size=3,
            shuffle=True,
        )


def test_a_slice_of_unknown_kind_is_never_drawn_for_balance() -> None:
    any_N = ANY_N.copy()
    any_N[500:] = np.nan
    order = BalancedSampler(slices_N=SLICES_N, any_N=any_N, batch_size=1, shuffle=True)
    assert order.num_unknown == 509
    drawn = np.concatenate([order.order(epoch) for epoch in range(100)])
    assert set(drawn) == set(SLICES_N[:500])


def test_balance_without_a_known_label_is_refused() -> None:
    with pytest.raises(LoaderError, match="found 0 with and 0 without among 1009"):
        BalancedSampler(
            slices_N=SLICES_N,
            any_N=np.full(1009, np.nan),
            batch_size=3,
            shuffle=True,
        )


# ----------------------------------------------------------------------- study-wise


def test_a_study_wise_epoch_has_one_slice_of_each_study() -> None:
    order = study_wise(batch_size=1, shuffle=True)
    study_of = dict(zip(SLICES_N.tolist(), STUDY_N.tolist(), strict=True))
    studies = [study_of[int(position)] for position in order.order(0)]
    assert sorted(studies) == list(range(31))
    assert studies != sorted(studies)


def test_the_middle_of_a_study_is_drawn_as_often_as_by_the_first_place() -> None:
    num_epochs, count = 4000, 37
    order = StudySampler(
        slices_N=np.arange(count),
        study_N=np.zeros(count, dtype=np.int64),
        batch_size=1,
        shuffle=True,
    )
    drawn = np.concatenate([order.order(epoch) for epoch in range(num_epochs)])
    weights = [max(1, min(place, count - 1 - place) // 4) for place in range(count)]
    expected = np.array(weights) / sum(weights)
    found = np.bincount(drawn, minlength=count) / num_epochs
    tolerance = 5 * np.sqrt(expected / num_epochs)
    assert (np.abs(found - expected) < tolerance).all()
    assert expected[18] == 4 * expected[0]


# ------------------------------------------------------------------- from a store


def test_make_sampler_takes_labels_and_studies_from_the_store(
    tiny_store: Store,
) -> None:
    labelled_N = np.flatnonzero(~np.isnan(tiny_store.labels_NK()).any(axis=1))
    made = {
        name: make_sampler(
            name, tiny_store, labelled_N, bag_slices=16, batch_size=1, shuffle=True
        )
        for name in SAMPLINGS
    }
    any_N = tiny_store.labels_NK()[:, 0]
    studies = tiny_store.table["study"].to_numpy()
    assert sorted(made["all"].order(0)) == labelled_N.tolist()
    assert any_N[made["balanced"].order(0)].mean() == 0.5
    drawn = studies[made["study"].order(0)]
    assert sorted(drawn) == sorted(set(studies[labelled_N]))


@pytest.mark.parametrize("name", SAMPLINGS)
def test_validation_has_every_slice_for_any_sampling(
    name: str, tiny_store: Store
) -> None:
    slices_N = np.array([3, 4, 20])
    made = make_sampler(
        name, tiny_store, slices_N, bag_slices=16, batch_size=2, shuffle=False
    )
    assert made.order(0).tolist() == [3, 4, 20]


def test_an_unknown_sampling_names_the_near_miss(tiny_store: Store) -> None:
    with pytest.raises(LoaderError, match="did you mean balanced"):
        make_sampler(
            "balance",
            tiny_store,
            np.arange(3),
            bag_slices=16,
            batch_size=1,
            shuffle=True,
        )
