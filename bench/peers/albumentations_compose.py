"""PyTorch DataLoader and albumentations, which computes with OpenCV.

OpenCV resamples the stored uint16, and the window is applied to the small output.
albumentations has no lighting in logit space: torch computes it. OpenCV's own threads
are off, as both manuals recommend for workers.

Shape letters: H rows, W columns, S side of the output.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from bench.peers.task import (
    DataLoaderPeer,
    LoaderTask,
    StoredSlices,
    normalize,
    relight,
    window_values,
)

# Otherwise importing albumentations asks a server for a newer version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def make(task: LoaderTask) -> DataLoaderPeer:
    """Build the peer."""
    return DataLoaderPeer(task, StoredSlices(task, _Transform(task)))


class _Transform:
    """Builds its pipeline at the first call, which is in the worker."""

    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        self._geometry: Any = None
        self._cutout: Any = None

    def __call__(self, stored_HW: Any) -> Tensor:
        if self._geometry is None:
            self._build()
        stored_SS = self._geometry(image=stored_HW)["image"]
        value_1SS = window_values(
            torch.from_numpy(stored_SS.astype("float32"))[None], self._task.window
        )
        value_1SS = relight(value_1SS, self._task.augment)
        value_SS = self._cutout(image=value_1SS[0].numpy())["image"]
        return normalize(torch.from_numpy(value_SS)[None], self._task.normalization)

    def _build(self) -> None:
        albumentations = import_module("albumentations")
        cv2 = import_module("cv2")
        cv2.setNumThreads(0)
        augment, size = self._task.augment, (self._task.size, self._task.size)
        chance = augment.affine_probability
        self._geometry = albumentations.Compose(
            [
                albumentations.OneOf(
                    [
                        albumentations.RandomResizedCrop(
                            size,
                            scale=(augment.max_zoom**-2, 1.0),
                            ratio=(1.0, 1.0),
                            interpolation=cv2.INTER_AREA,
                            p=chance,
                        ),
                        albumentations.Resize(
                            *size, interpolation=cv2.INTER_AREA, p=1.0 - chance
                        ),
                    ],
                    p=1.0,
                ),
                albumentations.Rotate(limit=augment.max_rotation_deg, p=chance),
                albumentations.HorizontalFlip(p=augment.flip_probability),
            ]
        )
        self._cutout = albumentations.CoarseDropout(
            num_holes_range=augment.cutout_holes,
            hole_height_range=augment.cutout_side,
            hole_width_range=augment.cutout_side,
            p=augment.cutout_probability,
        )
