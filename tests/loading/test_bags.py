"""Bags are the series and studies with labels that their slices lack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.errors import FoldError, LoaderError
from ichfast.labels import CLASSES
from ichfast.loading.bags import NO_BAGS, Bags, find_bags
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import make_loader
from ichfast.loading.sampler import BagSampler, Sampler, make_sampler
from ichfast.loading.splits import FoldConfig, split_slices
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.loading.contracts import check_loader
from tests.store.slice_store import bag_labels, simple_rows, write_slices

NAN = np.nan


def write_bags(
    path: Path, labels_NK: npt.ArrayLike, columns: Sequence[dict[str, float]]
) -> None:
    """Write a store of noise: series of five slices, studies of two series.

    Args:
        path: the store's folder.
        labels_NK: labels of the slices.
        columns: for each series its columns of labels of series and study.
    """
    rng = np.random.default_rng(3)
    labels = np.asarray(labels_NK, dtype=np.float64)
    rows = simple_rows(len(labels), slices_a_series=5)
    for k, row in enumerate(rows):
        row |= columns[k // 5]
        row |= {"study": f"S{k // 10:02d}", "patient": f"P{k // 10:02d}"}
        row["series"] = f"R{k // 5:02d}"
    slices = [rng.integers(1000, 1100, (64, 64), dtype=np.uint16) for _ in rows]
    write_slices(path, slices, rows, labels)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four studies of ten slices, of two series each.

    S00: study labels of all classes, none of its slices. S01: own labels. S02: own
    labels of any, study labels of any and subdural. S03: a label of its first series,
    and one of the study of the same class and of another.
    """
    labels_NK = np.full((40, 6), NAN)
    labels_NK[10:20] = np.arange(60).reshape(10, 6) % 2
    labels_NK[20:30, 0] = 1
    none: dict[str, float] = {}
    columns = [
        *[bag_labels("study", **dict.fromkeys(CLASSES, 1.0))] * 2,
        *[none] * 2,
        *[bag_labels("study", any=1, subdural=0)] * 2,
        bag_labels("study", epidural=0, subdural=1) | bag_labels("series", subdural=1),
        bag_labels("study", epidural=0, subdural=1),
    ]
    path = tmp_path_factory.mktemp("bags") / "store"
    write_bags(path, labels_NK, columns)
    return path


@pytest.fixture
def store(store_path: Path) -> Iterator[Store]:
    """That store, open."""
    with Store(store_path) as opened:
        yield opened


def contents(bags: Bags) -> list[tuple[list[int], list[float]]]:
    """The slices and the labels of each bag."""
    return [
        (bags.slices_M[first : first + count].tolist(), labels_K.tolist())
        for first, count, labels_K in zip(
            bags.first_D, bags.count_D, bags.labels_DK, strict=True
        )
    ]


def test_a_bag_has_the_labels_that_its_slices_lack(store: Store) -> None:
    np.testing.assert_equal(
        contents(find_bags(store)),
        [
            (list(range(30, 35)), [NAN] * 5 + [1.0]),  # the series goes first
            (list(range(10)), [1.0] * 6),
            (list(range(20, 30)), [NAN] * 5 + [0.0]),  # any is known of its slices
            (list(range(30, 40)), [NAN, 0.0] + [NAN] * 4),
        ],
    )


def test_a_store_without_bags_has_none_and_its_old_sampler(tiny_store: Store) -> None:
    assert len(find_bags(tiny_store)) == 0
    assert len(NO_BAGS.within(np.arange(3))) == 0
    labelled_N = split_slices(tiny_store, FoldConfig(num_folds=2)).train_N
    made = make_sampler(
        "all", tiny_store, labelled_N, bag_slices=16, batch_size=3, shuffle=True
    )
    assert type(made) is Sampler


def test_bags_within_a_part_keep_its_slices_only(store: Store) -> None:
    found = contents(find_bags(store).within(np.array([33, 2, 1, 38, 12])))
    assert [slices for slices, _ in found] == [[33], [1, 2], [33, 38]]
    np.testing.assert_equal(found[1][1], [1.0] * 6)


@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 24, 40, 131])
def test_a_slice_is_drawn_from_each_of_equal_parts(count: int) -> None:
    bags = Bags(
        np.concatenate([[999], np.arange(count) + 50]),
        np.array([0, 1]),
        np.zeros((2, 6), np.float32),
    )
    rng = np.random.default_rng(1)
    drawn = np.array([bags.draw(16, rng) - 50 for _ in range(400)])
    assert (drawn[:, 0] == 949).all()
    places = drawn[:, 1]
    for part in range(16):
        first, end = part * count // 16, (part + 1) * count // 16
        assert set(places[:, part]) == set(range(first, max(end, first + 1)))
    if count >= 16:
        assert (np.diff(places, axis=1) > 0).all()
    assert set(places.ravel()) == set(range(count))


def test_the_maximum_of_a_bag_is_over_all_its_slices(store: Store) -> None:
    bags = find_bags(store)
    positions_N = np.delete(np.arange(40), [11, 15])  # as ranks have put them together
    values_NK = np.random.default_rng(0).random((38, 6))
    highest = bags.highest(positions_N, values_NK)
    for (slices, _), found in zip(contents(bags), highest, strict=True):
        rows = [positions_N.tolist().index(each) for each in slices]
        np.testing.assert_array_equal(found, values_NK[rows].max(axis=0))


# ------------------------------------------------------------------------- the order


def sampler_of(store: Store, **settings: Any) -> BagSampler:
    defaults = {"batch_size": 8, "bag_slices": 4, "shuffle": True, "seed": 5}
    made = make_sampler("all", store, np.arange(40), **(defaults | settings))
    assert isinstance(made, BagSampler)
    return made


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_whole_blocks_of_an_epoch(store: Store, world_size: int) -> None:
    bags = contents(find_bags(store))
    ranks = [
        sampler_of(store, rank=rank, world_size=world_size, batch_size=4)
        for rank in range(world_size)
    ]
    own, of_bags = [], []
    for each in ranks:
        order, targets = each.order(3), each.bag_targets(3)
        assert len(order) == each.num_slices == 4 * len(targets) == 4 * len(each)
        for block, target_K in zip(order.reshape(-1, 4), targets, strict=True):
            if np.isnan(target_K).all():
                own += block.tolist()
                continue
            (bag,) = (
                number
                for number, (slices, labels_K) in enumerate(bags)
                if set(block) <= set(slices)
                and np.array_equal(labels_K, target_K, equal_nan=True)
            )
            of_bags.append(bag)
    assert len({each.num_slices for each in ranks}) == 1
    assert len(set(own)) == len(own)
    assert set(own) <= set(range(10, 30))
    assert len(set(of_bags)) == len(of_bags)
    left_over = 9 % world_size  # 20 // 4 blocks and 4 bags
    assert len(own) // 4 + len(of_bags) == 9 - left_over
    if world_size == 1:
        assert sorted(own) == list(range(10, 30))
        assert sorted(of_bags) == [0, 1, 2, 3]


def test_bags_are_drawn_anew_each_epoch_and_alike_for_the_same(store: Store) -> None:
    one, same, other = (sampler_of(store, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.order(2), same.order(2))
    np.testing.assert_array_equal(one.bag_targets(2), same.bag_targets(2))
    assert (one.order(2) != one.order(3)).any()
    assert (one.order(2) != other.order(2)).any()
    drawn = {
        tuple(sorted(set(one.order(epoch)) & set(range(10)))) for epoch in range(9)
    }
    assert len(drawn) > 3


def test_validation_has_every_slice_once_in_order(store: Store) -> None:
    made = make_sampler(
        "all", store, np.arange(40), bag_slices=4, batch_size=7, shuffle=False
    )
    assert type(made) is Sampler
    assert made.order(0).tolist() == list(range(40))


@pytest.mark.parametrize("sampling", ["balanced", "study"])
def test_another_sampling_is_refused_with_bags(store: Store, sampling: str) -> None:
    with pytest.raises(LoaderError, match=r"use --set data\.sampling=all"):
        make_sampler(
            sampling, store, np.arange(40), bag_slices=4, batch_size=4, shuffle=True
        )


def test_a_batch_must_be_made_of_whole_blocks(store: Store) -> None:
    with pytest.raises(LoaderError, match=r"multiple of data.bag_slices \(4\), got 6"):
        sampler_of(store, batch_size=6)


# --------------------------------------------------------------------- splits, loader


def test_bags_take_part_in_folds_and_their_labels_count(tmp_path: Path) -> None:
    labels_NK = np.full((80, 6), NAN)  # eight studies, every other one positive
    columns = [bag_labels("study", any=(k // 2) % 2) for k in range(16)]
    write_bags(tmp_path / "store", labels_NK, columns)
    with Store(tmp_path / "store") as store:
        for seed in range(8):
            split = split_slices(store, FoldConfig(num_folds=2, seed=seed))
            together = sorted([*split.train_N, *split.valid_N])
            assert together == list(range(80))
            for part in (split.train_N, split.valid_N):
                bags = split.bags.within(part)
                assert (len(bags), bags.labels_DK[:, 0].sum()) == (4, 2)
                assert (bags.count_D == 10).all()
            counts = split.counts(store)
            assert counts["train_labels"] == dict.fromkeys(CLASSES, 0)
            assert counts["train_bag_labels"]["any"] == 4
        with pytest.raises(FoldError, match=r"cut; use --set folds\.kind=patient"):
            split_slices(store, FoldConfig(num_folds=2, kind="slice"))


def config(**settings: Any) -> DataConfig:
    return DataConfig(size=32, level=256, batch_size=8, bag_slices=4, **settings)


@pytest.mark.parametrize("whole", [False, True], ids=["resampling", "whole"])
def test_a_loader_gives_the_targets_of_the_bags_of_each_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr("ichfast.loading.loader.graph_is_whole", lambda _: whole)
    bags = contents(find_bags(store))
    labels_NK = store.labels_NK()
    with make_loader(store, np.arange(40), config(), shuffle=True, seed=5) as loader:
        batches = list(loader.epoch(1))
        late = list(loader.epoch(1, first_batch=2))
        check_order = [batch.indices_B.tolist() for batch in batches]
    assert check_order == sampler_of(store).order(1).reshape(-1, 8).tolist()
    num_bags = 0
    for batch in batches:
        targets_BK, bag_targets_DK = batch.targets_BK[:8], batch.targets_BK[8:]
        assert bag_targets_DK.dtype == torch.float32
        np.testing.assert_array_equal(targets_BK, labels_NK[batch.indices_B])
        for block, target_K in zip(
            batch.indices_B.reshape(-1, 4), bag_targets_DK, strict=True
        ):
            if not target_K.isnan().all():
                num_bags += 1
                assert any(
                    set(block.tolist()) <= set(slices)
                    and np.array_equal(target_K, labels_K, equal_nan=True)
                    for slices, labels_K in bags
                )
    assert num_bags in (3, 4)  # one of nine blocks is left over
    for found, expected in zip(late, batches[2:], strict=True):
        assert torch.equal(found.indices_B, expected.indices_B)
        np.testing.assert_array_equal(found.targets_BK, expected.targets_BK)


def test_a_loader_of_a_part_without_bags_gives_no_targets_of_bags(store: Store) -> None:
    with make_loader(store, np.arange(10, 20), config(), shuffle=True) as loader:
        assert {len(batch.targets_BK) for batch in loader} == {8}
    with make_loader(store, np.arange(40), config()) as loader:
        assert {len(batch.targets_BK) for batch in loader} == {8}
        check_loader(loader, list(range(40)), batch_size=8, shuffle=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_gets_the_targets_of_its_own_blocks(store: Store, rank: int) -> None:
    with make_loader(
        store, np.arange(40), config(), shuffle=True, seed=5, ranks=Ranks(rank, 2)
    ) as loader:
        batches = list(loader.epoch(0))
    sampler = sampler_of(store, rank=rank, world_size=2)
    found = [batch.targets_BK[8:] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(found), sampler.bag_targets(0))
    assert len(batches) == 2
