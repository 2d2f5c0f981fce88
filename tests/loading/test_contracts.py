"""The checks of loaders accept loaders that keep their promises, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bench.harness.steps import ResidentBatches
from ichfast.loading.batch import Batch
from ichfast.loading.sampler import Sampler
from tests.loading.contracts import check_loader, check_ranks
from tests.training.tiny_trainer import BATCH_SIZE, NUM_SLICES, FakeLoader

SLICES = list(range(13))


@dataclass
class PlainLoader:
    """Batches whose images are their positions; `fault` names a broken promise."""

    shuffle: bool
    fault: str = ""

    def __post_init__(self) -> None:
        self.sampler = Sampler(
            slices_N=np.array(SLICES), batch_size=4, shuffle=self.shuffle
        )
        self.num_slices = self.sampler.num_slices
        self.num_epochs = 0

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        self.num_epochs += 1
        order = self.sampler.order(0 if self.fault == "same order" else epoch)
        if self.fault == "resumes late" and first_batch:
            first_batch += 1
        if self.fault == "remembers" and self.num_epochs == 8:
            order = order[::-1].copy()
        for iteration in range(first_batch, len(self)):
            picked = torch.from_numpy(self.sampler.batch(order, iteration))
            if self.fault == "pads":
                picked = torch.from_numpy(np.resize(picked, 4))
            if self.fault == "repeats" and iteration == 1:
                picked[0] = int(order[0])
            images = picked.half()[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
            if self.fault == "draws anew":
                images = images + torch.rand(1).half()
            yield Batch(images, torch.zeros(len(picked), 6), picked)

    def close(self) -> None:
        """Nothing to release."""


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_that_keeps_its_promises_passes(*, shuffle: bool) -> None:
    check_loader(PlainLoader(shuffle), SLICES, batch_size=4, shuffle=shuffle)


@pytest.mark.parametrize(
    ("shuffle", "fault"),
    [
        (True, "same order"),
        (True, "repeats"),
        (True, "resumes late"),
        (True, "draws anew"),
        (True, "remembers"),
        (False, "pads"),
        (False, "repeats"),
        (False, "resumes late"),
    ],
)
def test_a_loader_that_breaks_a_promise_fails(*, shuffle: bool, fault: str) -> None:
    with pytest.raises(AssertionError):
        check_loader(PlainLoader(shuffle, fault), SLICES, batch_size=4, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_fake_that_trainers_are_tested_with_is_a_loader(*, shuffle: bool) -> None:
    check_loader(
        FakeLoader(shuffle=shuffle),
        range(NUM_SLICES),
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
    )


def test_batches_loaded_before_are_a_loader_that_validates() -> None:
    loader = ResidentBatches(list(PlainLoader(shuffle=False).epoch(0)))
    check_loader(loader, SLICES, batch_size=4, shuffle=False)


@pytest.mark.parametrize(
    ("orders", "shuffle"),
    [
        ([[0, 1, 2], [2, 3]], False),  # not disjoint
        ([[0, 1], [3]], False),  # not complete
        ([[0, 1], [2]], True),  # not of one length
        ([[0], [1]], True),  # more left over than a batch of each
        ([[0, 9], [1, 2]], True),  # a slice from elsewhere
    ],
)
def test_ranks_that_do_not_fit_together_fail(
    orders: list[list[int]], *, shuffle: bool
) -> None:
    with pytest.raises(AssertionError):
        check_ranks(orders, range(4), batch_size=1, shuffle=shuffle)
