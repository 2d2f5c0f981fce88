"""The loader: batches of a store through the DALI graph.

What an epoch means here (if the code disagrees, the code is wrong):

1. `Sampler` alone decides the order; `augment.draw` alone decides the parameters.
2. `epoch(k)` gives the same batches whenever it is asked for, from any batch on.
3. Validation gives every slice exactly once; the last batch is short, never padded
   and never dropped. Training gives full batches only.
4. Each batch carries the store positions it was read from.
5. Leaving an epoch early and starting another works; so does closing at any time.

Shape letters: N slices of the store, B slices of the batch, H rows, W columns,
C windows, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment import (
    MIN_WIDTH_HU,
    AugmentConfig,
    count_halvings,
    draw,
)
from ichfast.batch import Batch
from ichfast.channels import OWN, neighbours, parse_windows, window_columns
from ichfast.errors import LoaderError
from ichfast.pipeline import (
    FEEDS,
    LOGIT_STEPS,
    LOGIT_ZERO,
    Normalization,
    slice_graph,
)
from ichfast.sampler import Sampler
from ichfast.store import Store

PREFETCH = 2
"""Batches DALI prepares ahead."""

MOST_THREADS = 8
"""Of a DALI pipeline, at most."""

READ_AHEAD = 4
"""Batches whose pages the kernel is asked for before they are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """How stored slices become a model's input."""

    size: int = 224
    """Side of the square the model sees, pixels."""

    batch_size: int = 64
    """Slices in a batch, per device."""

    level: int | str = 512
    """Store level to read, or ``auto``: the smallest that is at least `size`."""

    windows: tuple[str, ...] = ("brain",)
    """One channel a window: preset names, CENTER/WIDTH, or ``own``: the header's."""

    neighbours: bool = False
    """Three channels from one window: the slice before, the slice, the one after."""

    normalize: str = "none"
    """``imagenet``; ``data``, mean and std of the training slices; or ``none``."""

    def __post_init__(self) -> None:
        if self.size < 32:
            raise LoaderError(f"data.size must be at least 32 pixels, got {self.size}")
        if self.batch_size < 1:
            raise LoaderError(
                f"data.batch_size must be at least 1, got {self.batch_size}"
            )
        if len(self.windows) not in (1, 3):
            raise LoaderError(
                "data.windows takes 1 window or 3, one a channel, "
                f"got {len(self.windows)}"
            )
        if self.neighbours and len(self.windows) > 1:
            raise LoaderError(
                "data.neighbours shows three slices through one window, "
                f"got {len(self.windows)} windows"
            )
        if self.normalize not in ("imagenet", "data", "none"):
            raise LoaderError(
                "data.normalize is imagenet, data or none, got " + repr(self.normalize)
            )
        parse_windows(self.windows)

    @property
    def num_channels(self) -> int:
        """Channels of the images: 1 or 3."""
        return 3 if self.neighbours else len(self.windows)


def make_loader(  # noqa: PLR0913 - all but three are keywords with a default
    store: Store,
    slices_N: npt.NDArray[np.int64],
    config: DataConfig,
    *,
    normalization: Normalization | None = None,
    augment: AugmentConfig | None = None,
    shuffle: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
) -> DaliLoader:
    """Build a loader over some slices of a store.

    Args:
        store: open for reading; must outlive the loader.
        slices_N: store positions of the split.
        config: size, batch size, level, windows.
        normalization: per channel; None leaves windowed values in [0, 1].
        augment: what may be drawn; None changes nothing.
        shuffle: True to train, False to validate or predict.
        seed: run seed, for the order and the augmentation.
        rank: of this process.
        world_size: how many processes share the split.
        device: ``cpu``, or ``cuda`` for the current CUDA device.

    Returns:
        A `batch.Loader`, and a context manager that closes it.

    Raises:
        LoaderError: no slice, a level the store lacks, or less than one batch.
    """
    sampler = Sampler(
        slices_N=np.asarray(slices_N, dtype=np.int64),
        batch_size=config.batch_size,
        shuffle=shuffle,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    if len(sampler) == 0:
        raise LoaderError(
            f"{len(slices_N)} slice(s) do not fill one batch of {config.batch_size} "
            f"on {world_size} device(s); lower it with --set data.batch_size=N"
        )
    num_windows = len(config.windows)
    return DaliLoader(
        store,
        sampler,
        config,
        level=choose_level(store, config),
        normalization=normalization
        or Normalization(mean=(0.0,) * num_windows, std=(1.0,) * num_windows),
        augment=augment or AugmentConfig(),
        device=device,
    )


def choose_level(store: Store, config: DataConfig) -> int:
    """The store level that a loader reads.

    Raises:
        LoaderError: the store was prepared without that level.
    """
    if config.level == "auto":
        enough = [level for level in store.levels if level >= config.size]
        return min(enough, default=max(store.levels))
    if config.level not in store.levels:
        raise LoaderError(
            f"{store.path} has the levels {', '.join(map(str, store.levels))}, not "
            f"{config.level}; choose one with --set data.level=N, or prepare again "
            f"with --levels"
        )
    return int(config.level)


def source_shapes(store: Store, level: int) -> npt.NDArray[np.int64]:
    """Rows and columns of every slice at a level, shape (N, 2), int64."""
    if level == max(store.levels):
        return store.table[["rows", "columns"]].to_numpy(np.int64)
    return np.full((len(store), 2), level, dtype=np.int64)


def pipeline_options(batch_size: int, *, on_gpu: bool) -> dict[str, Any]:
    """How a DALI pipeline runs here: keywords of `nvidia.dali.Pipeline`.

    Args:
        batch_size: slices in a batch.
        on_gpu: on the current CUDA device; else without one.
    """
    return {
        "batch_size": batch_size,
        "num_threads": min(MOST_THREADS, os.cpu_count() or 1),
        "device_id": torch.cuda.current_device() if on_gpu else None,
        "prefetch_queue_depth": PREFETCH,
        "exec_dynamic": True,
        "seed": 0,
    }


class DaliLoader:
    """Batches of a store through DALI. Made by `make_loader`.

    One iterator at a time; not safe to share between threads.
    """

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        config: DataConfig,
        *,
        level: int,
        normalization: Normalization,
        augment: AugmentConfig,
        device: str,
    ) -> None:
        self.sampler = sampler
        self.config = config
        self.level = level
        self.device = device
        self._num_epochs = 0
        self._source = _BatchSource(store, sampler, augment, level, config)
        on_gpu = device != "cpu"
        self._pipeline = slice_graph(
            self._source,
            size=config.size,
            windows=parse_windows(config.windows),
            normalization=normalization,
            on_gpu=on_gpu,
            **pipeline_options(config.batch_size, on_gpu=on_gpu),
        )
        self._pipeline.build()

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self.sampler)

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""
        return self.sampler.num_slices

    def __repr__(self) -> str:
        return (
            f"DaliLoader({self.num_slices} slices in {len(self)} batches of "
            f"{self.config.batch_size}, level {self.level} -> {self.config.size} px, "
            f"windows {'+'.join(self.config.windows)}, {self.device})"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the next epoch: 0 the first time, then 1, and so on."""
        epoch = self._num_epochs
        self._num_epochs += 1
        return self.epoch(epoch)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch, from `first_batch` on.

        Raises:
            LoaderError: a batch could not be read; the loader is of no more use.
        """
        self._drain()
        self._source.start(epoch, first_batch)
        while True:
            try:
                outputs = self._run()
            except StopIteration:
                self._pipeline.reset()
                self._source.running = False
                return
            image_BHWC, target_BK, index_B1 = map(_as_torch, outputs)
            yield Batch(
                images_BCHW=image_BHWC.permute(0, 3, 1, 2),
                targets_BK=target_BK,
                indices_B=index_B1[:, 0],
            )

    def _run(self) -> Sequence[Any]:
        try:
            if self.device == "cpu":
                return self._pipeline.run()
            # The outputs are ordered on torch's stream: nothing waits on the host.
            return self._pipeline.run(torch.cuda.current_stream())
        except RuntimeError as error:
            first_line = str(error).strip().splitlines()[0]
            raise LoaderError(f"the DALI pipeline failed: {first_line}") from error

    def _drain(self) -> None:
        """Throw away what an epoch that was left early had prepared."""
        if not self._source.running:
            return
        self._source.stop()
        try:
            while True:
                self._run()
        except StopIteration:
            self._pipeline.reset()
            self._source.running = False

    def close(self) -> None:
        """Stop DALI's threads and free its buffers. Batches given out stay valid."""
        self._pipeline._shutdown()  # DALI has no public way to close

    def __enter__(self) -> DaliLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _as_torch(tensors: Any) -> torch.Tensor:
    return torch.utils.dlpack.from_dlpack(tensors.as_tensor())


_SLICES = ("stored", "before", "after")
"""Feeds that are slices, given by their positions until they are read."""


_HALVING = ("halved", "halving")
"""Feeds of a step that halves: the shape that comes out, and the matrix."""

_DOUBLE_33 = np.diag([2.0, 2.0, 1.0]).astype(np.float32)
"""From a pixel of a halved slice to the corner where its four pixels meet."""


def _halved(
    shape_B2: npt.NDArray[np.int64], halvings_B: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Rows and columns after some halvings; odd ones are rounded up."""
    return np.ceil(shape_B2 / 2.0 ** halvings_B[:, np.newaxis]).astype(np.float32)


class _BatchSource:
    """Hands DALI one batch a call: slices, targets, positions and parameters.

    `feeds` names the arrays of a call, in order: those that the graph will use.
    """

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        augment: AugmentConfig,
        level: int,
        config: DataConfig,
    ) -> None:
        self._store = store
        self._sampler = sampler
        self._augment = augment
        self._level = level
        self._size = config.size
        self._before_N, self._after_N = neighbours(store)
        self._center_NC, self._width_NC = window_columns(store, config.windows)
        self._labels_NK = store.labels_NK()
        shape_N2 = source_shapes(store, level)
        self._shape_N2 = shape_N2
        self._halvings_N = count_halvings(shape_N2[:, 0], shape_N2[:, 1], config.size)
        self._most_halvings = int(self._halvings_N[sampler.slices_N].max())
        wanted: dict[str, bool] = {}
        wanted["before"] = wanted["after"] = config.neighbours
        wanted["center"] = wanted["width"] = OWN in config.windows or any(
            augment.window_jitter
        )
        wanted["contrast"] = wanted["brightness"] = augment.max_lighting > 0
        wanted["corners"] = wanted["sides"] = augment.cutout_probability > 0
        # A step that halves has a shape and a matrix for every slice.
        steps = [f"{name}.{k}" for k in range(self._most_halvings) for name in _HALVING]
        self.feeds = (*(name for name in FEEDS if wanted.get(name, True)), *steps)
        self.running = False
        self._stopped = False
        self._epoch = 0
        self._first_batch = 0
        self._order = sampler.order(0)

    def start(self, epoch: int, first_batch: int) -> None:
        self._epoch = epoch
        self._first_batch = first_batch
        self._order = self._sampler.order(epoch)
        self._stopped = False
        self.running = True
        for iteration in range(first_batch, first_batch + READ_AHEAD):
            self._advise(iteration)

    def stop(self) -> None:
        self._stopped = True

    def __call__(self, info: Any) -> tuple[Any, ...]:
        iteration = self._first_batch + info.iteration
        picked_B = self._sampler.batch(self._order, iteration)
        if self._stopped or len(picked_B) == 0:
            raise StopIteration
        self._advise(iteration + READ_AHEAD)
        halvings_B = self._halvings_N[picked_B]
        shape_B2 = self._shape_N2[picked_B]
        drawn = draw(
            self._augment,
            seed=self._sampler.seed,
            epoch=self._epoch,
            slices_B=picked_B,
            source_shape_B2=shape_B2 / 2.0 ** halvings_B[:, np.newaxis],
            size=self._size,
        )
        arrays = {
            "stored": picked_B,
            "before": self._before_N[picked_B],
            "after": self._after_N[picked_B],
            "target": self._labels_NK[picked_B],
            "index": picked_B[:, np.newaxis],
            "matrix": drawn.matrix_B33,
            "center": self._center_NC[picked_B] + drawn.center_shift_B[:, np.newaxis],
            "width": np.maximum(
                self._width_NC[picked_B] + drawn.width_shift_B[:, np.newaxis],
                MIN_WIDTH_HU,
            ),
            # In steps of the graph's logit grid.
            "contrast": drawn.contrast_B[:, np.newaxis] * np.float32(LOGIT_STEPS),
            "brightness": (
                drawn.brightness_B[:, np.newaxis] * np.float32(LOGIT_STEPS)
                + np.float32(LOGIT_ZERO)
            ),
            "corners": drawn.hole_corner_BM2.reshape(len(picked_B), -1),
            "sides": drawn.hole_side_BM2.reshape(len(picked_B), -1),
        }
        for step in range(self._most_halvings):
            halves_B = halvings_B > step
            arrays[f"halved.{step}"] = _halved(
                shape_B2, np.minimum(halvings_B, step + 1)
            )
            arrays[f"halving.{step}"] = np.where(
                halves_B[:, np.newaxis, np.newaxis],
                _DOUBLE_33,
                np.eye(3, dtype=np.float32),
            )
        return tuple(
            self._views(arrays[name]) if name in _SLICES else arrays[name]
            for name in self.feeds
        )

    def _views(
        self, positions_B: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.uint16]]:
        """The slices at some positions, (H, W, 1) each, without a copy."""
        return [
            self._store.slice_HW(int(position), self._level)[..., np.newaxis]
            for position in positions_B
        ]

    def _advise(self, iteration: int) -> None:
        picked_B = self._sampler.batch(self._order, iteration)
        if len(picked_B):
            self._store.advise(picked_B, self._level)
