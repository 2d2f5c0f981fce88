"""torch alone, a batch at a time on the device: pooling, grid_sample, arithmetic.

It draws with `augment.parameters.draw`, so its images equal those of ichfast up to the
rounding of the resamples; a test checks that. On a CPU it uses all threads.

Shape letters: B slices, H rows, W columns, S side of the output, M holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bench.peers.task import LoaderTask, normalize, window_values
from ichfast.augment.geometry import count_halvings
from ichfast.augment.parameters import Parameters, draw
from ichfast.augment.reference import LOGIT_EPSILON
from ichfast.loading.batch import Batch
from ichfast.store.store import Store


def make(task: LoaderTask) -> GridSamplePeer:
    """Build the peer."""
    return GridSamplePeer(task)


class GridSamplePeer:
    """A `loading.batch.Loader` that reads in threads and computes on the device.

    A GPU computes one batch while the next is read, and gets it from pinned memory.
    """

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._store = Store(task.store_path)
        self._threads = ThreadPoolExecutor(max(1, task.workers))
        self._sampler = task.sampler
        self._labels_NK = torch.from_numpy(self._store.labels_NK())

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._sampler)

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""
        return self._sampler.num_slices

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first_batch` on, on the task's device."""
        order_N = self._sampler.order(epoch)
        for iteration in range(first_batch, len(self._sampler)):
            picked_B = self._sampler.batch(order_N, iteration)
            yield Batch(
                images_BCHW=self.images(picked_B, epoch),
                targets_BK=self._labels_NK[picked_B].to(self._task.device),
                indices_B=torch.from_numpy(picked_B),
            )

    def images(self, picked_B: npt.NDArray[np.int64], epoch: int) -> Tensor:
        """Make the images of slices of one shape.

        Args:
            picked_B: Store positions.
            epoch: Decides what is drawn for a slice.

        Returns:
            Shape (B, 1, S, S), float16, on the task's device.
        """
        task = self._task
        stored_BHW = np.stack(list(self._threads.map(self._read, picked_B.tolist())))
        rows_B = np.full(len(picked_B), stored_BHW.shape[1])
        columns_B = np.full(len(picked_B), stored_BHW.shape[2])
        halvings = int(count_halvings(rows_B, columns_B, task.size)[0])
        shape_B2 = np.stack([rows_B, columns_B], axis=1) / 2**halvings
        drawn = draw(
            task.augment,
            seed=0,
            epoch=epoch,
            slices_B=picked_B,
            source_shape_B2=shape_B2,
            size=task.size,
        )
        # torch computes with int16 but not with uint16; stored numbers fit in both.
        stored_B1HW = torch.from_numpy(stored_BHW.view(np.int16))[:, None]
        if task.device != "cpu":
            stored_B1HW = stored_B1HW.pin_memory()
        stored_B1HW = stored_B1HW.to(task.device, non_blocking=True).float()
        for _ in range(halvings):
            stored_B1HW = functional.avg_pool2d(stored_B1HW, 2)
        halved = (stored_B1HW.shape[2], stored_B1HW.shape[3])
        theta_B23 = _theta(drawn.matrix_B33, halved, task.size).to(task.device)
        grid_BSS2 = functional.affine_grid(
            theta_B23, [len(picked_B), 1, task.size, task.size], align_corners=False
        )
        warped_B1SS = functional.grid_sample(
            stored_B1HW, grid_BSS2, mode="bilinear", align_corners=False
        )
        value_B1SS = light(window_values(warped_B1SS, task.window), drawn)
        value_B1SS.masked_fill_(hole_mask(drawn, task.size, task.device), 0.0)
        return normalize(value_B1SS, task.normalization)

    def _read(self, position: int) -> npt.NDArray[np.uint16]:
        return self._store.slice_HW(position, self._task.level, check=False)

    def close(self) -> None:
        """End the threads and close the store."""
        self._threads.shutdown()
        self._store.close()


def _theta(
    matrix_B33: npt.NDArray[np.float32], shape: tuple[int, int], size: int
) -> Tensor:
    """Convert matrices to grid_sample's coordinates: -1 to 1 from edge to edge."""
    rows, columns = shape
    to_source = np.array([[2 / columns, 0, -1], [0, 2 / rows, -1], [0, 0, 1]])
    from_output = np.array(
        [[size / 2, 0, size / 2], [0, size / 2, size / 2], [0, 0, 1]]
    )
    theta_B33 = to_source @ matrix_B33.astype(np.float64) @ from_output
    return torch.from_numpy(theta_B33[:, :2].astype(np.float32))


def light(value_B1SS: Tensor, drawn: Parameters) -> Tensor:
    """Change brightness, then contrast, in logit space.

    Args:
        value_B1SS: Values in [0, 1].
        drawn: Gives contrast and brightness of each slice.
    """
    if (drawn.contrast_B == 1.0).all() and (drawn.brightness_B == 0.0).all():
        return value_B1SS
    contrast_B111 = torch.from_numpy(drawn.contrast_B)[:, None, None, None]
    brightness_B111 = torch.from_numpy(drawn.brightness_B)[:, None, None, None]
    logit_B1SS = torch.logit(value_B1SS, eps=LOGIT_EPSILON)
    logit_B1SS = logit_B1SS.add_(brightness_B111.to(value_B1SS.device))
    return logit_B1SS.mul_(contrast_B111.to(value_B1SS.device)).sigmoid_()


def hole_mask(drawn: Parameters, size: int, device: str) -> Tensor:
    """Mark the pixels of holes.

    Args:
        drawn: Gives the holes of each slice.
        size: Side of the output, pixels.
        device: Where the mask is computed.

    Returns:
        Shape (B, 1, S, S), bool.
    """
    place_S = torch.arange(size, device=device)
    corner_BM21 = torch.from_numpy(drawn.hole_corner_BM2).to(device).int()[..., None]
    side_BM21 = torch.from_numpy(drawn.hole_side_BM2).to(device).int()[..., None]
    is_cut_BM2S = (place_S >= corner_BM21) & (place_S < corner_BM21 + side_BM21)
    rows_BMS, columns_BMS = is_cut_BM2S.float().unbind(2)
    # A pixel's number of holes: the product sums over the holes of its slice.
    return (rows_BMS.transpose(1, 2) @ columns_BMS > 0)[:, None]
