"""`Batch` and the `Loader` protocol: what training, prediction and bench rely on.

Promises of a loader (`tests/loading/contracts.py` checks them on every loader):

1. One iteration over the loader is one epoch; iterating again is the next.
2. Validation gives each slice exactly once; the last batch is short, never
   padded and never dropped. Training drops the short last batch.
3. Each batch carries the store positions it was read from. So promises 1 and 2 can
   be tested, and results joined to slices, without relying on the order.
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
    """A batch of slices, ready for a model.

    Example:
        >>> import ichfast
        >>> config = ichfast.DataConfig(size=32, batch_size=8)
        >>> with ichfast.Store("ichfast-store") as store:
        ...     with ichfast.make_loader(store, range(20), config) as loader:
        ...         [len(batch) for batch in loader]
        [8, 8, 4]
    """

    images_BCHW: torch.Tensor
    """float16, channels-last, on the loader's device; windowed and normalised."""

    targets_BK: torch.Tensor
    """float32, on the loader's device; labels in the order of `labels.CLASSES`, NaN
    where the store has none."""

    indices_B: torch.Tensor
    """int64, on the CPU; store positions."""

    bag_targets_DK: torch.Tensor | None = None
    """None without bags (`ichfast.loading.bags`). Else float32, on the loader's device:
    a row for each D-th part of the batch, whose slices are of one bag. Labels of the
    bag that its slices lack, NaN where there are none."""

    def __len__(self) -> int:
        return len(self.indices_B)


class Loader(Protocol):
    """A source of batches, one epoch at a time."""

    def __len__(self) -> int:
        """Batches in one epoch."""

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch.

        The same arguments always give the same batches, which makes resuming exact.

        Args:
            epoch: counted from 0.
            first_batch: the first batch to return, counted from 0.
        """

    def close(self) -> None:
        """Free threads and memory."""
