"""`Batch` and the `Loader` protocol: what trainer, predictor and bench may assume.

Promises of a loader (`tests/loading/contracts.py` checks them on every loader we have):

1. One iteration over the loader is one epoch; iterating again is the next.
2. Validation gives each slice exactly once; the last batch is short, never
   padded and never dropped. Training drops the short last batch.
3. Each batch carries the store positions it was read from, so that the first
   two can be tested and results joined to slices without trusting order.
4. The same seed gives the same batches.

Shape letters: B slices in the batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Some slices, ready for a model."""

    images_BCHW: torch.Tensor
    """float16, channels-last, on the loader's device; windowed and normalised."""

    targets_BK: torch.Tensor
    """float32, on the loader's device; the labels in `labels.CLASSES` order.
    NaN where the store has none."""

    indices_B: torch.Tensor
    """int64, on the CPU; store positions of the slices."""

    def __len__(self) -> int:
        return len(self.indices_B)


class Loader(Protocol):
    """Something that gives batches, an epoch at a time."""

    def __len__(self) -> int:
        """Batches in one epoch."""

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Iterate over one epoch, from `first_batch` on.

        The same epoch number gives the same batches whenever it is asked for,
        which is what makes resuming exact.
        """

    def close(self) -> None:
        """Release the pipeline and the memory it holds."""
