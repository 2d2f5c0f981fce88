"""PyTorch DataLoader and torchvision's v2 transforms on tensors: a peer.

The resample works on the stored numbers, so only one channel is resampled and the
window is applied to the small output. Crop and resize come first, which makes the
rotation cheaper than in the reference's order. torchvision has neither lighting in
logit space nor several holes: torch computes those.

Shape letters: H rows, W columns, S side of the output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2  # type: ignore[import-untyped]  # noqa: TID251

from bench.peers.task import (
    DataLoaderPeer,
    LoaderTask,
    StoredSlices,
    cut_holes,
    normalize,
    relight,
    window_values,
)


def make(task: LoaderTask) -> DataLoaderPeer:
    """Build the peer."""
    return DataLoaderPeer(task, StoredSlices(task, _Transform(task)))


class _Transform:
    def __init__(self, task: LoaderTask) -> None:
        self._task = task
        augment = task.augment
        chance = augment.affine_probability
        smallest = augment.max_zoom**-2
        size = [task.size, task.size]
        zoom = v2.RandomResizedCrop(
            size, scale=(smallest, 1.0), ratio=(1.0, 1.0), antialias=True
        )
        plain = v2.Resize(size, antialias=True)
        turn = v2.RandomRotation(
            augment.max_rotation_deg, interpolation=v2.InterpolationMode.BILINEAR
        )
        self._geometry: nn.Module = v2.Compose(
            [
                v2.RandomChoice([zoom, plain], p=[chance, 1.0 - chance]),
                v2.RandomApply([turn], p=chance),
                v2.RandomHorizontalFlip(p=augment.flip_probability),
            ]
        )

    def __call__(self, stored_HW: Any) -> Tensor:
        stored_1HW = torch.from_numpy(stored_HW.astype("float32"))[None]
        value_1SS = window_values(self._geometry(stored_1HW), self._task.window)
        value_1SS = relight(value_1SS, self._task.augment)
        value_1SS = cut_holes(value_1SS, self._task.augment)
        return normalize(value_1SS, self._task.normalization)
