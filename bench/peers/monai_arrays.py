"""PyTorch DataLoader and MONAI's array transforms: a peer.

MONAI's own random transforms have neither a zoom about a random point nor lighting in
logit space. So `augment.parameters.draw` draws, MONAI resamples and windows, and torch
does the
rest: these are the very images ichfast gives, up to the rounding of the resamples, and
a test holds them to that. Zoom, rotation and flip are one `Affine`, as MONAI's lazy
resampling would make of them; halving comes before it where ichfast halves.

Metadata is not tracked, as that takes almost half of the time. Nothing is cached: a
training set does not fit. MONAI advises transforms on the GPU for volumes; for single
slices these would be many small kernels, so they stay in the workers.

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
"""Slices that are drawn for in one call; a call for one would cost a resample."""


def make(task: LoaderTask) -> DataLoaderPeer:
    """Build the peer."""
    return DataLoaderPeer(task, StoredSlices(task, MonaiTransform(task)))


class MonaiTransform:
    """Draws for slices and transforms them, one by one; all have one shape."""

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._drawn: list[Parameters] = []

    def __call__(self, stored_HW: npt.NDArray[np.uint16]) -> Tensor:
        """Draw, and show the slice: (1, S, S), float16."""
        if not self._drawn:
            self._drawn = list(_draw_many(self._task, stored_HW.shape))
        return self.show(stored_HW, self._drawn.pop())

    def show(self, stored_HW: npt.NDArray[np.uint16], drawn: Parameters) -> Tensor:
        """Do to a slice what was drawn for it.

        Args:
            stored_HW: as the store has it.
            drawn: for one slice of that shape, halved as ichfast halves it.

        Returns:
            Shape (1, S, S), float16.
        """
        # Imported where it is used: in a worker, which keeps no metadata either.
        transforms = import_module("monai.transforms")
        import_module("monai.data").set_track_meta(False)
        task = self._task
        # Stored numbers fit in int16, which torch computes with; uint16 it does not.
        image_1HW = torch.from_numpy(stored_HW.view(np.int16))[None].float()
        halvings = _halvings(stored_HW.shape, task.size)
        for _ in range(halvings):
            # Bilinear, read where four pixels meet, is their mean (of even sides).
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
        value_11SS[hole_mask(drawn, task.size)] = 0.0
        (mean,), (std,) = task.normalization.mean, task.normalization.std
        return transforms.NormalizeIntensity(mean, std)(value_11SS[0]).half()


def _draw_many(task: LoaderTask, shape: tuple[int, ...]) -> Iterator[Parameters]:
    """Parameters of slices of one shape, each on its own."""
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
    """The matrix in MONAI's coordinates: row before column, from the centers."""
    matrix_33 = drawn.matrix_B33[0][np.ix_((1, 0, 2), (1, 0, 2))].astype(np.float64)
    rows, columns = shape
    to_center = np.array([[1, 0, -rows / 2], [0, 1, -columns / 2], [0, 0, 1]])
    from_center = np.array([[1, 0, size / 2], [0, 1, size / 2], [0, 0, 1]])
    return to_center @ matrix_33 @ from_center
