"""DALI alone: its .npy reader, one file for each slice, and its random operators.

Resize, crop and flip are one antialiased `fn.resize` of a random region. The rotation
is a `warp_perspective`, because `fn.rotate` does not take uint16. Lighting is computed
only for slices that drew a change. The same graph runs on a GPU, with the reader on the
CPU.

The reader decides the order. It cannot restart or resume an epoch, and slices that do
not fill a batch begin the next epoch. So this peer is not a `loading.batch.Loader`.

Source:
    NVIDIA DALI 2.4, operators `readers.numpy`, `resize`, `erase` and
    `experimental.warp_perspective`, and "Conditional execution".

Shape letters: B slices of a batch, C characters, S side of the output, M holes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import (  # noqa: TID251 - a peer
    fn,
    pipeline_def,
    types,
)
from nvidia.dali import math as dali_math  # noqa: TID251 - a peer

from bench.peers.task import LoaderTask
from ichfast.augment.config import AugmentConfig
from ichfast.augment.reference import LOGIT_EPSILON
from ichfast.labels import CLASSES
from ichfast.loading.batch import Batch
from ichfast.loading.dali import as_torch
from ichfast.loading.graph import pipeline_options
from ichfast.store.store import Store
from ichfast.windows import HU_OFFSET


def make(task: LoaderTask) -> DaliNumpyPeer:
    """Build the peer and write its files."""
    return DaliNumpyPeer(task)


class DaliNumpyPeer:
    """A DALI pipeline that reads, draws and augments. Close it after use."""

    def __init__(self, task: LoaderTask) -> None:
        self._num_batches = len(task.positions_N) // task.batch_size
        self._on_gpu = task.device != "cpu"
        self._pipeline = _graph(
            _write_missing(task),
            task,
            on_gpu=self._on_gpu,
            **pipeline_options(task.batch_size, on_gpu=self._on_gpu),
        )
        self._pipeline.build()

    def epoch(self, _epoch: int) -> Iterator[Batch]:
        """Yield the next batches, without labels, on the task's device."""
        for _ in range(self._num_batches):
            images, names = self._pipeline.run()
            images_BHWC = as_torch(images, on_gpu=self._on_gpu)
            positions = [_position_of(names.at(k)) for k in range(len(names))]
            yield Batch(
                images_BCHW=images_BHWC.permute(0, 3, 1, 2),
                targets_BK=torch.full((len(positions), len(CLASSES)), torch.nan),
                indices_B=torch.tensor(positions),
            )

    def close(self) -> None:
        """Stop DALI's threads."""
        self._pipeline._shutdown()


def _position_of(name_C: npt.NDArray[np.uint8]) -> int:
    """Read the store position from a file name of `_write_missing`."""
    return int(Path(name_C.tobytes().decode()).stem.split("-")[1])


def _write_missing(task: LoaderTask) -> list[str]:
    """Write files of (H, W, 1) uint16, HU + 1024, where missing; returns all paths."""
    task.npy_dir.mkdir(parents=True, exist_ok=True)
    files = []
    with Store(task.store_path) as store:
        for position in task.positions_N.tolist():
            file = Path(task.npy_dir, f"{task.level}-{position}.npy")
            if not file.exists():
                stored_HW = store.slice_HW(position, task.level)
                np.save(file, stored_HW[..., np.newaxis])
            files.append(str(file))
    return files


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _graph(files: Sequence[str], task: LoaderTask, *, on_gpu: bool) -> Any:
    stored = fn.readers.numpy(
        files=files, shuffle_after_epoch=True, cache_header_information=True
    )
    name = fn.get_property(stored, key="source_info")
    stored = fn.reshape(stored, layout="HWC")
    if on_gpu:
        stored = stored.gpu()
    augment = task.augment
    start, end = _random_region(augment)
    small = fn.resize(
        stored,
        size=[task.size, task.size],
        roi_start=start,
        roi_end=end,
        roi_relative=True,
        antialias=True,
    )
    turned = fn.experimental.warp_perspective(
        small, matrix=_random_rotation(augment, task.size), fill_value=0
    )
    low = task.window.center - task.window.width / 2 + HU_OFFSET
    hu = fn.cast(turned, dtype=types.FLOAT) - low
    value = dali_math.clamp(hu / task.window.width, 0.0, 1.0)
    darkens = _coin(augment.lighting_probability, 5)
    stretches = _coin(augment.lighting_probability, 6)
    if darkens + stretches > 0:
        value = _relight(value, augment, darkens, stretches)
    value = _cut_holes(value, augment, task.size)
    (mean,), (std,) = task.normalization.mean, task.normalization.std
    return fn.cast((value - mean) / std, dtype=types.FLOAT16), name


def _coin(probability: float, seed: int) -> Any:
    return fn.random.coin_flip(probability=probability, seed=seed)


def _uniform(low: float, high: float, seed: int, **more: Any) -> Any:
    # DALI refuses a range of one number.
    return low + (high - low) * fn.random.uniform(range=[0.0, 1.0], seed=seed, **more)


def _random_region(augment: AugmentConfig) -> tuple[Any, Any]:
    """Draw relative corners of the visible region; swapped columns mirror it."""
    zoom = _uniform(augment.min_zoom, augment.max_zoom, 7)
    zooms = _coin(augment.affine_probability, 8)
    side = 1.0 - zooms * (1.0 - 1.0 / zoom)
    top = _uniform(0.0, 1.0, 9) * (1.0 - side)
    left = _uniform(0.0, 1.0, 10) * (1.0 - side)
    mirrors = _coin(augment.flip_probability, 11)
    start = fn.stack(top, left + mirrors * side)
    return start, fn.stack(top + side, left + side - mirrors * side)


def _random_rotation(augment: AugmentConfig, size: int) -> Any:
    """Draw a rotation about the centre, (3, 3), from output to input."""
    max_angle, middle = math.radians(augment.max_rotation_deg), size / 2.0
    angle = _coin(augment.affine_probability, 3) * _uniform(-max_angle, max_angle, 4)
    cos, sin = dali_math.cos(angle), dali_math.sin(angle)
    matrix = fn.stack(
        *(cos, -sin, middle * (1.0 - cos + sin)),
        *(sin, cos, middle * (1.0 - sin - cos)),
        *(0.0 * cos, 0.0 * cos, 0.0 * cos + 1.0),
    )
    return fn.reshape(matrix, shape=[3, 3])


def _relight(value: Any, augment: AugmentConfig, darkens: Any, stretches: Any) -> Any:
    """Brightness and contrast in logit space, as `bench.peers.task.relight`."""
    amount = augment.max_lighting
    change = 0.5 + 0.5 * darkens * _uniform(-amount, amount, 12)
    brightness = dali_math.log(change / (1.0 - change))
    contrast = dali_math.exp(-math.log1p(-amount) * stretches * _uniform(-1.0, 1.0, 13))
    value = dali_math.clamp(value, LOGIT_EPSILON, 1.0 - LOGIT_EPSILON)
    logit = (dali_math.log(value / (1.0 - value)) + brightness) * contrast
    return 1.0 / (1.0 + dali_math.exp(-logit))


def _cut_holes(value: Any, augment: AugmentConfig, size: int) -> Any:
    """Cut the maximal number of holes; those that were not drawn have size 0."""
    min_holes, max_holes = augment.cutout_holes
    number_M2 = np.repeat(np.arange(max_holes, dtype=np.int32), 2)
    count = fn.random.uniform(values=list(range(min_holes, max_holes + 1)), seed=14)
    min_side, max_side = augment.cutout_side
    side = fn.random.uniform(values=list(range(min_side, max_side + 1)), seed=15)
    side = side * _coin(augment.cutout_probability, 16)
    corner = _uniform(0.0, float(size), 17, shape=[2 * max_holes]) - side / 2.0
    is_cut = types.Constant(number_M2) < count
    return fn.erase(
        value, anchor=corner, shape=side * is_cut, axis_names="HW", fill_value=0.0
    )
