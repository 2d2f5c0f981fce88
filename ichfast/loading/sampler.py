"""The order of slices: a pure function of seed, epoch, rank and world size.

Promises:

1. Training has a new order each epoch; validation keeps store order.
2. Ranks are disjoint, and no slice comes twice in an epoch (`BagSampler` says where it
   may). In validation the ranks together hold every slice once. In training each rank
   has the same number of full batches; the remaining slices, less than one global
   batch, wait for another epoch.
3. There is no state: any batch can be computed without the ones before it, which makes
   resuming exact.

`Sampler` trains on every slice. Its subclasses choose slices anew for each training
epoch; validation is the same for all.

Shape letters: N slices of the split, B slices of the batch, M studies of the split,
E slices, or blocks of G slices, of one training epoch; K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.errors import LoaderError, unknown
from ichfast.labels import CLASSES
from ichfast.loading.bags import Bags, bag_starts, find_bags
from ichfast.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """The order of a split's slices on one rank."""

    slices_N: npt.NDArray[np.int64]
    """Store positions of the split; the same on every rank."""

    batch_size: int
    """Slices in a batch on one rank."""

    shuffle: bool
    """True to train: shuffled, only full batches. False to validate."""

    seed: int = 0
    """Run seed; the order of an epoch is drawn from (seed, epoch)."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.slices_N.ndim != 1 or len(self.slices_N) == 0:
            raise LoaderError(
                "expected the store positions of one slice or more, got an array of "
                f"shape {self.slices_N.shape}"
            )
        if self.seed < 0:
            raise LoaderError(f"the seed must be 0 or more, got {self.seed}")
        if not 0 <= self.rank < self.world_size:
            raise LoaderError(
                f"rank is from 0 to world_size - 1, got rank {self.rank} of "
                f"{self.world_size}"
            )

    @property
    def num_slices(self) -> int:
        """Slices in one epoch on this rank."""
        if self.shuffle:
            return len(self) * self.batch_size
        return len(range(self.rank, len(self.slices_N), self.world_size))

    def __len__(self) -> int:
        """Batches in one epoch on this rank."""
        if self.shuffle:
            return self.num_drawn // (self.batch_size * self.world_size)
        return -(-self.num_slices // self.batch_size)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Store positions of this rank in an epoch, shape (num_slices,), int64."""
        if not self.shuffle:
            return self.slices_N[self.rank :: self.world_size].copy()
        drawn_E = self._draw(np.random.default_rng([self.seed, epoch]))
        return drawn_E[self.rank :: self.world_size][: self.num_slices].copy()

    def batch(
        self, order: npt.NDArray[np.int64], iteration: int
    ) -> npt.NDArray[np.int64]:
        """Store positions of a batch; empty after the last one.

        Args:
            order: the order of an epoch.
            iteration: number of the batch in the epoch, from 0.
        """
        start = iteration * self.batch_size
        return order[start : start + self.batch_size]

    @property
    def num_drawn(self) -> int:
        """E: slices of a training epoch on all ranks, before it is cut into batches."""
        return len(self.slices_N)

    @property
    def block_slices(self) -> int:
        """Slices that stay together: a divisor of the batch size."""
        return 1

    def _draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draw the slices of a training epoch for all ranks, in order, shape (E,)."""
        return rng.permutation(self.slices_N)


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancedSampler(Sampler):
    """Trains on as many slices with hemorrhage as without.

    An epoch has every slice of the rarer kind, and as many of the other kind, drawn
    anew. On the RSNA set these are 2 of 7 slices, all slices with hemorrhage included.
    Slices whose label `any` is missing are of neither kind, and are never drawn.

    Source:
        Undersampling by the competition's 142nd place at the start of training.
    """

    any_N: npt.NDArray[np.floating]
    """The label `any` of each slice in `slices_N`: 0, 1 or NaN."""

    def __post_init__(self) -> None:
        Sampler.__post_init__(self)  # super() fails up to 3.13: python/cpython#90562
        if self._num_each() == 0:
            num_with, num_without = self._num_kinds()
            raise LoaderError(
                "balanced sampling needs slices with and without hemorrhage, found "
                f"{num_with} with and {num_without} without among "
                f"{len(self.slices_N)}; choose another fold or sampling"
            )

    def _num_kinds(self) -> tuple[int, int]:
        return int((self.any_N == 1).sum()), int((self.any_N == 0).sum())

    def _num_each(self) -> int:
        return min(self._num_kinds())

    @property
    def num_unknown(self) -> int:
        """Slices that are left out because their label `any` is missing."""
        return len(self.slices_N) - sum(self._num_kinds())

    @property
    def num_drawn(self) -> int:
        """Twice the number of slices of the rarer kind."""
        return 2 * self._num_each()

    def _draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        kinds = [
            rng.choice(self.slices_N[kind_N], size=self._num_each(), replace=False)
            for kind_N in (self.any_N == 1, self.any_N == 0)
        ]
        return rng.permutation(np.concatenate(kinds))


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySampler(Sampler):
    """Trains on one slice of each study, more often from its middle than its ends.

    Neighbouring slices look alike, so an epoch with a 35th of the slices shows most of
    what a whole epoch shows.

    Source:
        SeuTao/RSNA2019_Intracranial-Hemorrhage-Detection (1st place),
        2DNet/src/dataset/dataset.py, whose epoch draws four times from each study.
    """

    study_N: npt.NDArray[np.int64]
    """Number of the study of each slice in `slices_N`. Slices of a study are
    consecutive, in the order of their positions."""

    def _first_M(self) -> npt.NDArray[np.intp]:
        """Index in `slices_N` of each study's first slice."""
        return np.flatnonzero(np.diff(self.study_N, prepend=self.study_N[0] - 1))

    @property
    def num_drawn(self) -> int:
        """Number of studies."""
        return len(self._first_M())

    def _draw(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        first_M = self._first_M()
        count_M = np.diff(first_M, append=len(self.slices_N))
        weight_N = _centre_weights(first_M, count_M)
        # A uniform point in the cumulated weight of a study falls on one of its slices.
        end_N = np.cumsum(weight_N)
        end_M = end_N[first_M + count_M - 1]
        start_M = end_N[first_M] - weight_N[first_M]
        point_M = rng.integers(start_M, end_M)
        drawn_M = np.searchsorted(end_N, point_M, side="right")
        return rng.permutation(self.slices_N[drawn_M])


@dataclass(frozen=True, kw_only=True, slots=True)
class BagSampler(Sampler):
    """Trains on slices with labels of their own and on bags, in blocks of slices.

    It is for training only.

    A block is so many slices of a bag, drawn anew each epoch, or so many slices with
    labels of their own. An epoch has a block of each bag and each slice with an own
    label once, apart from those left over from blocks and batches. A rank gets whole
    blocks, and so does a batch.

    A slice may come twice in an epoch: in the blocks of its series and its study, as a
    slice with an own label of another class, or in a bag with fewer slices than G.
    """

    is_labelled_N: npt.NDArray[np.bool_]
    """Whether each slice in `slices_N` has a label of its own."""

    bags: Bags
    """At least one."""

    bag_slices: int
    """G: slices in a block."""

    def __post_init__(self) -> None:
        Sampler.__post_init__(self)
        if self.batch_size % self.bag_slices:
            raise LoaderError(
                "this store has labels of studies or series, so data.batch_size must "
                f"be a multiple of data.bag_slices ({self.bag_slices}), got "
                f"{self.batch_size}; change one of them with --set"
            )

    @property
    def num_drawn(self) -> int:
        """Slices of all blocks."""
        num_labelled = int(self.is_labelled_N.sum())
        return (num_labelled // self.bag_slices + len(self.bags)) * self.bag_slices

    @property
    def block_slices(self) -> int:
        """Slices of a block."""
        return self.bag_slices

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Store positions of this rank in an epoch, shape (num_slices,), int64."""
        slices_EG, _ = self._blocks(epoch)
        return slices_EG.ravel()

    def bag_targets(self, epoch: int) -> npt.NDArray[np.float32]:
        """Targets of the bag of each block of this rank in an epoch: 0, 1 or NaN.

        Args:
            epoch: counted from 0.

        Returns:
            Shape (E, K), E the blocks of the rank; NaN where a block is of no bag.
        """
        _, bag_E = self._blocks(epoch)
        labels_EK = self.bags.labels_DK[bag_E]
        labels_EK[bag_E < 0] = np.nan
        return labels_EK

    def _blocks(
        self, epoch: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The slices of this rank's E blocks, and their bags (-1 for none)."""
        rng = np.random.default_rng([self.seed, epoch])
        labelled = rng.permutation(self.slices_N[self.is_labelled_N])
        num_blocks = len(labelled) // self.bag_slices
        labelled = labelled[: num_blocks * self.bag_slices]
        slices_EG = np.concatenate(
            [
                labelled.reshape(num_blocks, self.bag_slices),
                self.bags.draw(self.bag_slices, rng),
            ]
        )
        bag_E = np.concatenate([np.full(num_blocks, -1), np.arange(len(self.bags))])
        mine = rng.permutation(len(bag_E))[self.rank :: self.world_size]
        mine = mine[: self.num_slices // self.bag_slices]
        return slices_EG[mine], bag_E[mine]


def _centre_weights(
    first_M: npt.NDArray[np.intp], count_M: npt.NDArray[np.intp]
) -> npt.NDArray[np.int64]:
    """Weight of each slice: a quarter of its distance to the nearer end, or 1."""
    place_N = np.arange(count_M.sum()) - np.repeat(first_M, count_M)
    to_end_N = np.repeat(count_M, count_M) - 1 - place_N
    return np.maximum(np.minimum(place_N, to_end_N) // 4, 1)


SAMPLINGS = ("all", "balanced", "study")
"""Names of the samplers: `Sampler`, `BalancedSampler` and `StudySampler`."""


def check_sampling(sampling: str) -> None:
    """Check the name of a sampler.

    Raises:
        LoaderError: the name is not in `SAMPLINGS`.
    """
    if sampling not in SAMPLINGS:
        raise LoaderError(unknown("sampling", sampling, SAMPLINGS))


def make_sampler(
    sampling: str,
    store: Store,
    slices_N: npt.NDArray[np.int64],
    *,
    bag_slices: int,
    **settings: Any,
) -> Sampler:
    """Make a sampler by name; a `BagSampler` to train on slices that are in bags.

    Args:
        sampling: a name in `SAMPLINGS`; it matters only for training.
        store: gives labels, bags and studies.
        slices_N: store positions of the split, increasing.
        bag_slices: slices in a block, if there are bags.
        settings: the other fields of `Sampler`: ``batch_size``, ``shuffle``, ``seed``,
            ``rank`` and ``world_size``.

    Raises:
        LoaderError: the name is unknown, a setting is out of range, there are only
            slices of one kind to balance, or another sampling than ``all`` with bags.
    """
    check_sampling(sampling)
    if not settings["shuffle"]:
        return Sampler(slices_N=slices_N, **settings)
    bags = find_bags(store).within(slices_N)
    if len(bags):
        if sampling != "all":
            raise LoaderError(
                f"{store.path} has labels of studies or series, which data.sampling="
                f"{sampling} does not draw; use --set data.sampling=all"
            )
        is_known_NK = ~np.isnan(store.labels_NK()[slices_N])
        return BagSampler(
            slices_N=slices_N,
            is_labelled_N=np.logical_or.reduce(is_known_NK, axis=1),
            bags=bags,
            bag_slices=bag_slices,
            **settings,
        )
    if sampling == "balanced":
        any_N = store.labels_NK()[slices_N, CLASSES.index("any")]
        return BalancedSampler(slices_N=slices_N, any_N=any_N, **settings)
    if sampling == "study":
        return StudySampler(
            slices_N=slices_N, study_N=_study_numbers(store)[slices_N], **settings
        )
    return Sampler(slices_N=slices_N, **settings)


def _study_numbers(store: Store) -> npt.NDArray[np.int64]:
    """Number of each slice's study, shape (slices of the store,), increasing."""
    _, count_M = bag_starts(store, "study")
    return np.repeat(np.arange(len(count_M)), count_M)
