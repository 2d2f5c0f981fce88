"""PyTorch DataLoader and MONAI's array transforms: a peer.

MONAI's random transforms have neither a zoom about a random point nor lighting in logit
space. So `augment.parameters.draw` draws, MONAI resamples and windows, and torch does
the rest. The images equal those of ichfast up to the rounding of the resamples; a test
checks that. Zoom, rotation and flip are one `Affine`, as in MONAI's lazy resampling.
Halving comes before it where ichfast halves.

Metadata is not tracked, which would take almost half of the time. Nothing is cached,
because a training set does not fit. MONAI recommends transforms on the GPU for volumes;
for single slices they would be many small kernels, so they stay in the workers.

Source:
    MONAI 1.6, "Lazy Resampling" and `monai.data.set_track_meta`.

Shape letters: H rows, W columns, B slices, S side of the output.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.peers.grid_sample import hole_mask, light
from bench.peers.task import DataLoaderPeer, LoaderTask, StoredSlices
from ichfast.augment.geometry import count_halvings
from ichfast.augment.parameters import Parameters, draw
from ichfast.windows import HU_OFFSET

DRAWN_AT_ONCE = 256
"""Slices in one call of `draw`; a call for one slice costs as much as a resample."""


def make(task: LoaderTask) -> DataLoaderPeer:
    """Build the peer."""
    return DataLoaderPeer(task, StoredSlices(task, MonaiTransform(task)))


class MonaiTransform:
    """Augments slices of one shape, one by one."""

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._drawn: list[Parameters] = []

    def __call__(self, stored_HW: npt.NDArray[np.uint16]) -> Tensor:
        """Draw parameters and apply them to a slice: (1, S, S), float16."""
        if not self._drawn:
            self._drawn = list(_draw_many(self._task, stored_HW.shape))
        return self.show(stored_HW, self._drawn.pop())

    def show(self, stored_HW: npt.NDArray[np.uint16], drawn: Parameters) -> Tensor:
        """Apply drawn parameters to a slice.

        Args:
            stored_HW: A slice of the store.
            drawn: Parameters of one slice of that shape, after ichfast's halving.

        Returns:
            Shape (1, S, S), float16.
        """
        # Imported here because the worker needs the import and the setting.
        transforms = import_module("monai.transforms")
        import_module("monai.data").set_track_meta(False)
        task = self._task
        # torch computes with int16 but not with uint16; stored numbers fit in both.
        image_1HW = torch.from_numpy(stored_HW.view(np.int16))[None].float()
        halvings = _halvings(stored_HW.shape, task.size)
        for _ in range(halvings):
            # Bilinear interpolation where four pixels meet is their mean (even sides).
            halved = [side // 2 for side in image_1HW.shape[1:]]
            image_1HW = transforms.Resize(halved, mode="bilinear")(image_1HW)
        turn = transforms.Affine(
            affine=_from_centers(drawn, image_1HW.shape[1:], task.size),
            spatial_size=(task.size, task.size),
            padding_mode="zeros",
            image_only=True,
        )
        low = task.window.center - task.window.width / 2 + HU_OFFSET
        window = transforms.ScaleIntensityRange(
            low, low + task.window.width, 0.0, 1.0, clip=True
        )
        value_11SS = light(window(turn(image_1HW))[None], drawn)
        value_11SS[hole_mask(drawn, task.size, "cpu")] = 0.0
        (mean,), (std,) = task.normalization.mean, task.normalization.std
        return transforms.NormalizeIntensity(mean, std)(value_11SS[0]).half()


def _draw_many(task: LoaderTask, shape: tuple[int, ...]) -> Iterator[Parameters]:
    """Draw parameters of many slices of one shape; yields them one by one."""
    shape_2 = np.array(shape) / 2 ** _halvings(shape, task.size)
    drawn = draw(
        task.augment,
        seed=random.getrandbits(31),
        epoch=0,
        slices_B=np.arange(DRAWN_AT_ONCE),
        source_shape_B2=np.tile(shape_2, (DRAWN_AT_ONCE, 1)),
        size=task.size,
    )
    for row in range(DRAWN_AT_ONCE):
        yield Parameters(
            **{f.name: getattr(drawn, f.name)[row : row + 1] for f in fields(drawn)}
        )


def _halvings(shape: tuple[int, ...], size: int) -> int:
    rows, columns = (np.array([side]) for side in shape)
    return int(count_halvings(rows, columns, size)[0])


def _from_centers(
    drawn: Parameters, shape: tuple[int, ...], size: int
) -> npt.NDArray[np.float64]:
    """Convert a matrix to MONAI's coordinates: row, then column, from the centers."""
    matrix_33 = drawn.matrix_B33[0][np.ix_((1, 0, 2), (1, 0, 2))].astype(np.float64)
    rows, columns = shape
    to_center = np.array([[1, 0, -rows / 2], [0, 1, -columns / 2], [0, 0, 1]])
    from_center = np.array([[1, 0, size / 2], [0, 1, size / 2], [0, 0, 1]])
    return to_center @ matrix_33 @ from_center
