"""Which slice comes when: a pure function of seed, epoch, rank and world size.

Promises:

1. Training sees a fresh permutation each epoch; validation keeps store order.
2. Ranks are disjoint. In validation they together hold every slice once; in
   training each has the same number of full batches, and what is left over
   (less than one global batch) waits for another epoch.
3. There is no state: a batch can be computed without the ones before it, which
   makes resuming exact.

Shape letters: N slices of the split, B slices of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.errors import LoaderError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """The order of one split's slices on one rank."""

    slices_N: npt.NDArray[np.int64]
    """Store positions of the split, the same array on every rank."""

    batch_size: int
    """Slices in a batch on one rank."""

    shuffle: bool
    """True to train: shuffled, full batches only. False to validate."""

    seed: int = 0
    """Run seed; the permutation is drawn from (seed, epoch)."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.slices_N.ndim != 1 or len(self.slices_N) == 0:
            raise LoaderError(
                "expected the store positions of one slice or more, got an array of "
                f"shape {self.slices_N.shape}"
            )
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
            return len(self.slices_N) // (self.batch_size * self.world_size)
        return -(-self.num_slices // self.batch_size)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Store positions of this rank in the order of `epoch`.

        Returns:
            Shape (num_slices,), int64, contiguous.
        """
        if not self.shuffle:
            return self.slices_N[self.rank :: self.world_size].copy()
        shuffled_N = np.random.default_rng([self.seed, epoch]).permutation(
            self.slices_N
        )
        return shuffled_N[self.rank :: self.world_size][: self.num_slices].copy()

    def batch(
        self, order: npt.NDArray[np.int64], iteration: int
    ) -> npt.NDArray[np.int64]:
        """Store positions of one batch of `order`; empty behind the last one."""
        start = iteration * self.batch_size
        return order[start : start + self.batch_size]
