"""`Batch` and the `Loader` protocol: what training, prediction and bench rely on.

Promises of a loader (`tests/loading/contracts.py` checks them on every loader):

1. One iteration over the loader is one epoch; iterating again is the next.
2. Validation gives each slice exactly once; the last batch is short, never
   padded and never dropped. Training drops the short last batch.
3. Each batch carries the store positions it was read from. So promises 1 and 2 can
   be tested, and results joined to slices, without relying on the order.
4. The same seed gives the same batches.

Shape letters: B slices in the batch, D bags, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch


class Batch(NamedTuple):
    """A batch of slices, ready for a model: a named tuple of three tensors.

    Named tuples are what torch, Lightning and Accelerate collate, pin, gather and move.
    `len` is that of the tuple; `num_slices` counts the slices.

    Example:
        >>> import ichfast
        >>> config = ichfast.DataConfig(size=32, batch_size=8)
        >>> with ichfast.Store("ichfast-store") as store:
        ...     with ichfast.make_loader(store, range(20), config) as loader:
        ...         for images, targets, indices in loader:
        ...             print(images.shape, targets.shape, indices.tolist()[-1])
        torch.Size([8, 1, 32, 32]) torch.Size([8, 6]) 7
        torch.Size([8, 1, 32, 32]) torch.Size([8, 6]) 15
        torch.Size([4, 1, 32, 32]) torch.Size([4, 6]) 19
    """

    images_BCHW: torch.Tensor
    """float16, channels-last, on the loader's device; windowed and normalised."""

    targets_BK: torch.Tensor
    """float32, on the loader's device; labels in the order of `labels.CLASSES`, NaN
    where the store has none. With bags (`ichfast.loading.bags`) its shape is
    (B + D, K): after the slices a row for each D-th part of the batch, whose slices are
    of one bag. It has the labels of the bag that its slices lack, NaN where there are
    none."""

    indices_B: torch.Tensor
    """int64, on the CPU unless moved; store positions."""

    @property
    def num_slices(self) -> int:
        """Slices in the batch."""
        return len(self.indices_B)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device; tensors that are there are not copied.

        Args:
            device: where all tensors go, the indices too.
            non_blocking: whether the host goes on before page-locked memory is copied.
        """
        return Batch(*(each.to(device, non_blocking=non_blocking) for each in self))

    def __repr__(self) -> str:
        fields = (f"{name}: {_describe(each)}" for name, each in self._asdict().items())
        return f"Batch({', '.join(fields)})"


def _describe(value: torch.Tensor) -> str:
    """Dtype, shape and device of a tensor in a few words."""
    if not hasattr(value, "device"):  # frameworks map other values into a batch
        return repr(value)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{dtype} {tuple(value.shape)} on {value.device}"


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
