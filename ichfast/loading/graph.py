"""The DALI graph: stored uint16 slices in, windowed float16 images out.

On a GPU the slices are uploaded as uint16, two bytes a pixel, and all steps run there:

    slice ─[halve]─ warp_perspective ─ per window: lookup_table ─ cat ─[erase]─ image

An image may show several slices, each through all windows. The warp takes one, three or
four channels on a GPU, and up to four on a CPU, so each slice is resampled by itself.

An operator may have a kernel for a type on the CPU and none on the GPU. So
`tests/loading/test_gpu_graph.py` looks up the kernels of this graph in DALI's
libraries.

The size of the output and how often each slice is halved are inputs of each batch. A
graph has as many halving steps as its size needs. On a CPU the graph only resamples,
and NumPy does the steps before and after it (`graph_is_whole` explains why). The whole
graph also runs on a CPU; that is how tests compare it with the reference.

A window that is the same for every slice is one look-up in a table that includes the
normalisation. Windows that differ by slice (`own`, or jittered) and lighting are
arithmetic in float32.

The graph has no state, no order and no randomness: all of these are inputs of a batch.
`ichfast.loading.loader` runs it; `augment.reference.apply_to_slab` is its readable
reference.

Shape letters: B slices of the batch, D slices of a slab, H rows, W columns, C windows,
S output size, V stored values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert

from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import Parameters
from ichfast.augment.reference import LOGIT_EPSILON
from ichfast.loading.dali import SLICE_LAYOUT
from ichfast.windows import HU_OFFSET, Normalization, Window, window_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Feed:
    """An array that the graph reads for each slice of a batch."""

    dtype: types.DALIDataType = types.FLOAT
    num_axes: int = 1

    on_gpu: bool = False
    """Uploaded by a graph on a GPU. The others are arguments, which operators read on
    the CPU."""


@dataclass(frozen=True, slots=True)
class DrawnFeed(Feed):
    """A feed that is a drawn parameter."""

    values: Callable[[Parameters], npt.NDArray[np.float32]]
    """Takes the feed from the parameters of a batch; it is flattened to (B, ...)."""

    is_used: Callable[[AugmentConfig], bool]
    """Whether the parameter is drawn; if not, the graph has no step for it."""


def _has_lighting(augment: AugmentConfig) -> bool:
    return augment.max_lighting > 0


def _has_holes(augment: AugmentConfig) -> bool:
    return augment.cutout_probability > 0


SLICE_FEED = "slice"
"""Feed of each slice of a slab, from the lowest to the highest. Its names end in the
number of the slice: ``slice.0``."""

WINDOW_FEEDS = ("center", "width")
"""Windows in HU, a number per window; used only if they differ by slice."""

HALVING_FEEDS = ("halves", "halved")
"""Feeds of each halving step: whether it halves the slice, and the rows and columns
after it. Their names end in the number of the step: ``halves.0``."""

RESAMPLE_FEEDS = ("matrix", "size")
"""The only numbers that a graph needs which only resamples."""

DRAWN_FEEDS = {
    "contrast": DrawnFeed(lambda drawn: drawn.contrast_B, _has_lighting),
    "brightness": DrawnFeed(lambda drawn: drawn.brightness_B, _has_lighting),
    "corners": DrawnFeed(lambda drawn: drawn.hole_corner_BM2, _has_holes),
    "sides": DrawnFeed(lambda drawn: drawn.hole_side_BM2, _has_holes),
}
"""Feeds that are drawn parameters; `loading.feeds` computes them from this table."""

FEEDS = {
    SLICE_FEED: Feed(dtype=types.UINT16, num_axes=3, on_gpu=True),
    **dict.fromkeys(WINDOW_FEEDS, Feed(on_gpu=True)),
    **DRAWN_FEEDS,
    "target": Feed(on_gpu=True),
    "index": Feed(dtype=types.INT64),
    "matrix": Feed(num_axes=2),
    "size": Feed(),
    "halves": Feed(dtype=types.BOOL, num_axes=0),
    "halved": Feed(),
}
_FIRST_STEP = 2**23
LOGIT_ZERO = _FIRST_STEP + 32_768
LOGIT_STEPS = 2_048
"""Lit values pass through a grid of 65,536 steps in logit space: 2,048 per unit, 16
units to each side, beyond which a value is 0 or 1 to 2e-7. The offset is rounded to a
step, and then the sum is: one step of error at most, which changes a value by less than
float16 resolves near 1. Steps are counted from 2**23 (see `_step_of`)."""

_DOUBLE = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0]
"""Maps a pixel of a halved slice to the corner where its four pixels meet."""

PREFETCH = {"cpu": 4, "cuda": 2}
"""Batches that DALI prepares ahead, by device. A GPU has little memory. On a CPU the
loader shades batches meanwhile; with few of them, it and DALI wait for each other."""

MAX_THREADS = 8
"""Upper limit of threads in a DALI pipeline."""


def graph_is_whole(device: str) -> bool:
    """Whether the graph does all steps, or only resamples.

    The images are the same except for the last bits. On a CPU, NumPy halves slices in
    the threads that read them (`ichfast.store.levels`) and shades the output
    (`ichfast.loading.shading`), in a third of DALI's time or less. A GPU has time to
    spare, while few CPU cores may read for each GPU. The price is that slices are
    uploaded unhalved: four times the bytes, 2.6 GB/s for 5,000 slices/s of 512x512.
    Slices kept on the device must be halved there anyway.
    """
    return device != "cpu"


def pipeline_options(batch_size: int, *, on_gpu: bool) -> dict[str, Any]:
    """Keyword arguments of `nvidia.dali.Pipeline` for this machine.

    Args:
        batch_size: slices in a batch.
        on_gpu: run on the current CUDA device; if False, without a device.
    """
    return {
        "batch_size": batch_size,
        "num_threads": min(MAX_THREADS, len(os.sched_getaffinity(0))),
        "device_id": torch.cuda.current_device() if on_gpu else None,
        "prefetch_queue_depth": PREFETCH["cuda" if on_gpu else "cpu"],
        # On a CPU the dynamic executor frees its buffers after each batch, and touching
        # fresh pages costs more than copying the batch (bench/LOG.md, 2026-11).
        "exec_dynamic": on_gpu,
        "seed": 0,
    }


class BatchSource(Protocol):
    """A callable that gives the graph its inputs."""

    feeds: tuple[str, ...]
    """Names of the arrays that a call returns, in order; they decide the graph's
    steps."""

    def __call__(self, info: types.BatchInfo) -> tuple[Any, ...]:
        """Return the arrays of one batch; raise StopIteration after the last batch."""


# Only code in this function may branch on a feed: DALI rewrites its `if` statements.
@pipeline_def(enable_conditionals=True)
def slice_graph(
    columns: BatchSource,
    slices: BatchSource,
    *,
    windows: Sequence[Window],
    normalization: Normalization,
    on_gpu: bool,
    uploaded: bool,
) -> tuple[Any, ...]:
    """Describe the graph.

    Args:
        columns: gives numbers for each slice; its `feeds` decide the steps. Without
            "target" the graph only resamples.
        slices: gives the slices. DALI reads those in host memory in place, so it must
            not change until the batch has come out.
        windows: C windows, in channel order.
        normalization: mean and standard deviation per window.
        on_gpu: run all steps on the GPU; slices are uploaded as uint16.
        uploaded: the slices are in the GPU's memory already.

    Returns:
        Images, float16, shape (S, S, D * C) per slice; targets; store positions. If the
        graph only resamples: slabs, uint16, shape (S, S, D).
    """
    fed = {
        **_read(columns),
        **_read(
            slices,
            # Slices on the GPU are copied: DALI then waits for torch's stream, which
            # may not have gathered them yet. It would read shared memory at once.
            no_copy=not uploaded,
            device="gpu" if uploaded else "cpu",
            # Slices in host memory carry their layout; DALI would wrap each again.
            layout=SLICE_LAYOUT if uploaded else None,
        ),
    }
    if on_gpu:
        for name in fed:
            if _feed(name).on_gpu:
                fed[name] = fed[name].gpu()
    warped = []
    for name in slices.feeds:
        # On a CPU a sequential copy brings a slice into the cache before the resample
        # reads it in any direction: 187 -> 114 us a slice in total (bench/LOG.md).
        stored = fed[name] if on_gpu else fn.copy(fed[name])
        for step in range(sum(name.startswith("halves.") for name in fed)):
            if fed[f"halves.{step}"]:
                # Bilinear interpolation where four pixels meet is their mean. Six times
                # the rate of an antialiased fn.resize (bench/LOG.md).
                stored = fn.experimental.warp_perspective(
                    stored, matrix=_DOUBLE, size=fed[f"halved.{step}"], fill_value=0
                )
        warped += [
            fn.experimental.warp_perspective(
                stored, matrix=fed["matrix"], size=fed["size"], fill_value=0
            )
        ]
    if "target" in fed:
        image = _shade(warped, windows, normalization, fed)
        outputs = [image, fed["target"], fed["index"]]
    else:
        outputs = [_join(warped)]
    return tuple(outputs)


@do_not_convert
def _join(channels: Sequence[Any]) -> Any:
    """Join images of one channel to one image."""
    return fn.cat(*channels, axis=2) if len(channels) > 1 else channels[0]


@do_not_convert
def _shade(
    warped_D: Sequence[Any],
    windows: Sequence[Window],
    normalization: Normalization,
    fed: Mapping[str, Any],
) -> Any:
    """Window, light and normalise each slice of a slab, then cut holes."""
    shades = list(zip(windows, normalization.mean, normalization.std, strict=True))
    image = _join(
        [
            _channel(warped, number, *each, fed)
            for warped in warped_D
            for number, each in enumerate(shades)
        ]
    )
    if "corners" not in fed:
        return image
    air_C = [
        window_table(window, mean=mean, std=std)[0] for window, mean, std in shades
    ]
    return _cut(image, np.array(air_C * len(warped_D), np.float16), fed)


@do_not_convert
def _cut(image: Any, air: npt.NDArray[np.float16], fed: Mapping[str, Any]) -> Any:
    """Fill holes of an image, float16, with the air of each channel.

    On a GPU `fn.erase` takes no float16, so it gets the same bits as uint16.
    """
    erased = fn.erase(
        fn.reinterpret(image, dtype=types.UINT16),
        anchor=fed["corners"],
        shape=fed["sides"],
        axis_names="HW",
        fill_value=air.view(np.uint16).tolist(),
    )
    return fn.reinterpret(erased, dtype=types.FLOAT16)


@do_not_convert
def _read(source: BatchSource, **options: Any) -> dict[str, Any]:
    """Read the feeds of a source, by name."""
    feeds = [_feed(name) for name in source.feeds]
    outputs = fn.external_source(
        source=source,
        batch=True,
        batch_info=True,
        num_outputs=len(feeds),
        dtype=[feed.dtype for feed in feeds],
        ndim=[feed.num_axes for feed in feeds],
        **options,
    )
    return dict(zip(source.feeds, outputs, strict=True))


def _feed(name: str) -> Feed:
    return FEEDS[name.partition(".")[0]]


def _look_up(
    stored: Any, table_V: npt.NDArray[np.float32], dtype: types.DALIDataType
) -> Any:
    keys = list(range(len(table_V)))
    return fn.lookup_table(stored, keys=keys, values=table_V.tolist(), dtype=dtype)


def _channel(
    warped: Any,
    number: int,
    window: Window,
    mean: float,
    std: float,
    fed: Mapping[str, Any],
) -> Any:
    """Window, light and normalise one channel, to float16.

    DALI's arithmetic takes no float16 and is slow on the CPU, exponentials above all.
    So tables do what they can: the window and the normalisation; with lighting, first
    the logit and then, on a fine grid, its inverse.
    """
    lit = "contrast" in fed
    if "center" in fed:
        value = _window_by_slice(warped, number, window.shape, fed)
        if not lit:
            return fn.cast((value - mean) / std, dtype=types.FLOAT16)
        value = math.clamp(value, LOGIT_EPSILON, 1.0 - LOGIT_EPSILON)
        logit = math.log(value / (1.0 - value))
    elif lit:
        logit = _look_up(warped, _logit_table(window), types.FLOAT)
    else:
        table_V = window_table(window, mean=mean, std=std)
        return _look_up(warped, table_V, types.FLOAT16)
    table_V = (_value_of_step() - np.float32(mean)) / np.float32(std)
    return _look_up(_step_of(logit, fed), table_V, types.FLOAT16)


def _step_of(logit: Any, fed: Mapping[str, Any]) -> Any:
    """Light a logit, float32, and return its step on the grid, uint16.

    From 2**23 to 2**24 every float32 is a whole number, and its low 23 bits are its
    distance from 2**23. So a sum in that range is rounded as it is formed, and its
    bits, read as an int32, minus those of 2**23, are the step. The bits of numbers from
    0 on are in order, so sums beyond the grid saturate at its ends;
    `AugmentConfig.max_lighting` keeps sums from falling below 0.

    Source:
        IEEE 754-2019, 3.4, binary32. On the CPU DALI takes two to four times as long
        to cast float32 to uint16 as it takes for int32 (bench/LOG.md, 2026-11).
    """
    # (logit + brightness) * contrast, as one product and one sum. float32 resolves only
    # whole steps where the grid begins, so the offset is rounded to a step here, and
    # then the sum is.
    contrast = fed["contrast"] * float(LOGIT_STEPS)
    lit = fn.brightness_contrast(
        logit,
        contrast=contrast,
        contrast_center=0.0,
        brightness_shift=fed["brightness"] * contrast + float(LOGIT_ZERO),
        dtype=types.FLOAT,  # for this type a shift is added without scaling
    )
    bits = fn.reinterpret(lit, dtype=types.INT32)
    bits_of_first = int(np.float32(_FIRST_STEP).view(np.int32))
    return fn.cast(bits - bits_of_first, dtype=types.UINT16)


def _window_by_slice(
    warped: Any, number: int, shape: str, fed: Mapping[str, Any]
) -> Any:
    """Apply a window that differs by slice: values in [0, 1], float32."""
    hu = fn.cast(warped, dtype=types.FLOAT) - float(HU_OFFSET)
    distance = (hu - fed["center"][number]) / fed["width"][number]
    if shape == "sigmoid":
        return 1.0 / (1.0 + math.exp(-4.0 * distance))
    return math.clamp(distance + 0.5, 0.0, 1.0)


def _value_of_step() -> npt.NDArray[np.float32]:
    """Values in [0, 1] of all steps of the logit grid."""
    logit_V = (_FIRST_STEP + np.arange(65_536) - LOGIT_ZERO) / LOGIT_STEPS
    return (1.0 / (1.0 + np.exp(-logit_V))).astype(np.float32)


def _logit_table(window: Window) -> npt.NDArray[np.float32]:
    """Windowed values of all stored values, in logit space."""
    value_V = window_table(window, mean=0.0, std=1.0)
    # In float32, as in the reference: the largest number below 1 has a logit of 15.9.
    value_V = np.clip(value_V, LOGIT_EPSILON, 1.0 - LOGIT_EPSILON).astype(np.float64)
    return np.log(value_V / (1.0 - value_V)).astype(np.float32)
