"""The reference's loader: 8-bit PNG, PIL's bicubic resize, one affine resample, CPU.

It works like fastai v1 in the workers of a DataLoader: rotation, zoom and flip as one
matrix, `grid_sample` with reflection, lighting in logit space, cutout. It makes one
channel instead of three equal ones.

Source:
    DrHB/Intracranial-Hemorrhage-Detection, exp-30; fastai v1 `vision.transform`.

Shape letters: S side of the output.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from bench.peers.task import (
    DataLoaderPeer,
    LoaderTask,
    Sample,
    cut_holes,
    normalize,
    relight,
)
from ichfast.augment.config import AugmentConfig
from ichfast.store.store import Store
from ichfast.windows import HU_OFFSET


def make(task: LoaderTask) -> DataLoaderPeer:
    """Build the peer and write its PNG files."""
    _write_missing(task)
    return DataLoaderPeer(task, _PngSlices(task))


def _file(task: LoaderTask, position: int) -> Path:
    return task.png_dir / f"{position}.png"


def _write_missing(task: LoaderTask) -> None:
    """Write the reference's files where missing: clamped HU as 8 bits, unscaled."""
    task.png_dir.mkdir(parents=True, exist_ok=True)
    low, high = (task.window.center + k * task.window.width / 2 for k in (-1, 1))
    with Store(task.store_path) as store:
        for position in task.positions_N.tolist():
            file = _file(task, position)
            if not file.exists():
                stored_HW = store.slice_HW(position).astype(np.float32)
                hu_HW = np.clip(stored_HW - HU_OFFSET, max(low, 0), min(high, 255))
                Image.fromarray(hu_HW.astype(np.uint8)).save(file, compress_level=1)


class _PngSlices(Dataset[Sample]):
    def __init__(self, task: LoaderTask) -> None:
        self._task = task

    def __getitem__(self, position: int) -> Sample:
        task, size = self._task, self._task.size
        with Image.open(_file(task, position)) as image:
            small = image.resize((size, size), Image.Resampling.BICUBIC)
        value_1SS = torch.from_numpy(np.array(small, dtype=np.float32))[None] / 255.0
        grid_1SS2 = functional.affine_grid(
            _theta(task.augment)[None], [1, 1, size, size], align_corners=True
        )
        value_1SS = functional.grid_sample(
            value_1SS[None],
            grid_1SS2,
            mode="bilinear",
            padding_mode="reflection",
            align_corners=True,
        )[0]
        value_1SS = cut_holes(relight(value_1SS, task.augment), task.augment)
        return normalize(value_1SS, task.normalization), position


def _theta(augment: AugmentConfig) -> Tensor:
    """Draw rotation, zoom around a random point and flip as one matrix, (2, 3)."""
    angle, scale, shift = 0.0, 1.0, (0.0, 0.0)
    if random.random() < augment.affine_probability:
        angle = math.radians(random.uniform(-1.0, 1.0) * augment.max_rotation_deg)
    if random.random() < augment.affine_probability:
        scale = 1.0 / random.uniform(augment.min_zoom, augment.max_zoom)
        reach = 1.0 - scale
        shift = (random.uniform(-reach, reach), random.uniform(-reach, reach))
    mirror = -1.0 if random.random() < augment.flip_probability else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    turn_22 = torch.tensor([[cos, -sin], [sin, cos]])
    zoom_23 = torch.tensor([[mirror * scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
    return turn_22 @ zoom_23
