"""The DALI graph: stored uint16 slices in, windowed float16 images out.

On a GPU the slices go up as uint16, two bytes a pixel, and everything else happens
there:

    stored ─[halve]─ warp_perspective ─ per window: lookup_table ─ cat ─[erase]─ image

The output's size comes in with each batch, and only slices that a batch wants halved
pass through a step that halves: one graph serves every size. On a CPU the graph is the
resample alone, and NumPy does what comes before and after (`graph_is_whole` says why);
the whole graph runs there too, which is how tests hold it to its twin.

A window that is the same for every slice is one look-up in a table with the
normalisation in it. Windows that differ by slice (its own, or jittered) and
lighting are arithmetic in float32.

The graph holds no state, no order and no chance: all of these come in with each batch.
`ichfast.loading.loader` runs it, `augment.reference.apply_parameters` is its readable
twin.

Shape letters: H rows, W columns, C windows, S output size, V stored values.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert

from ichfast.augment.reference import LOGIT_EPSILON
from ichfast.loading.dali import SLICE_LAYOUT
from ichfast.windows import HU_OFFSET, Normalization, Window, window_table


@dataclass(frozen=True, slots=True)
class Feed:
    """One array that the graph gets for each slice."""

    dtype: types.DALIDataType
    num_axes: int


FEEDS = {
    "stored": Feed(types.UINT16, 3),
    "target": Feed(types.FLOAT, 1),
    "index": Feed(types.INT64, 1),
    "matrix": Feed(types.FLOAT, 2),
    "size": Feed(types.FLOAT, 1),
    "before": Feed(types.UINT16, 3),
    "after": Feed(types.UINT16, 3),
    "center": Feed(types.FLOAT, 1),  # these two only if windows differ by slice
    "width": Feed(types.FLOAT, 1),
    "contrast": Feed(types.FLOAT, 1),  # these two only if there is lighting
    "brightness": Feed(types.FLOAT, 1),
    "corners": Feed(types.FLOAT, 1),  # these two only if there is cutout
    "sides": Feed(types.FLOAT, 1),
}

SLICE_FEEDS = ("stored", "before", "after")
"""Feeds that are slices; the last two only if neighbours are seen."""

RESAMPLE_FEEDS = ("matrix", "size")
"""Feeds of numbers that a graph needs which is not whole."""

_ON_GPU = {
    *SLICE_FEEDS,
    *("target", "center", "width"),
}
"""What is uploaded; positions, matrices, sizes, lighting and holes are arguments, read
on the CPU."""


_FIRST_STEP = 2**23
LOGIT_ZERO = _FIRST_STEP + 32_768
LOGIT_STEPS = 2_048
"""Lit values pass through a grid of 65,536 steps in logit space: 2,048 a unit, 16 units
to each side, beyond which a value is 0 or 1 to 2e-7. Brightness is rounded to a step,
then the sum is: together a step at most, which changes a value by less than float16 can
tell near 1. Steps are counted from 2**23 on: `_step_of` says why."""


HALVING_FEEDS = {
    "halves": Feed(types.BOOL, 0),  # whether this slice passes through the step
    "halved": Feed(types.FLOAT, 1),  # the shape that comes out
}
"""Of each step that halves, named with the step's number: ``halves.0``."""

_DOUBLE = [2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0]
"""From a pixel of a halved slice to the corner where its four pixels meet."""


PREFETCH = {"cpu": 4, "cuda": 2}
"""Batches DALI prepares ahead, by device. A GPU's memory is scarce; a CPU shades
batches beside, and with few of them waits for DALI and DALI for it."""

MOST_THREADS = 8
"""Of a DALI pipeline, at most."""


def graph_is_whole(device: str) -> bool:
    """Whether the graph does all there is to do, or only resamples.

    The same images but for the last bits either way. On a CPU NumPy halves slices in
    the threads that read them (`ichfast.store.levels`), and windows, lights and cuts
    what comes out (`ichfast.loading.shading`), in a third of DALI's time or less. A GPU
    has the time, the host's cores may not: a few of them read for each GPU. Whole
    slices are four times the bytes on the bus, 2.6 GB/s for 5,000 slices/s of 512x512,
    and slices kept on the device are halved there anyway.
    """
    return device != "cpu"


def pipeline_options(batch_size: int, *, on_gpu: bool) -> dict[str, Any]:
    """How a DALI pipeline runs here: keywords of `nvidia.dali.Pipeline`.

    Args:
        batch_size: slices in a batch.
        on_gpu: on the current CUDA device; else without one.
    """
    return {
        "batch_size": batch_size,
        "num_threads": min(MOST_THREADS, len(os.sched_getaffinity(0))),
        "device_id": torch.cuda.current_device() if on_gpu else None,
        "prefetch_queue_depth": PREFETCH["cuda" if on_gpu else "cpu"],
        # On a CPU it frees its buffers after each batch, and touching fresh pages costs
        # more than copying the batch out of kept ones (bench/LOG.md, 2026-11).
        "exec_dynamic": on_gpu,
        "seed": 0,
    }


def _feed_of(name: str) -> Feed:
    stem, _, step = name.partition(".")
    return HALVING_FEEDS[stem] if step else FEEDS[stem]


class BatchSource(Protocol):
    """What the graph reads from."""

    feeds: tuple[str, ...]
    """Names of the arrays of a call, in order; they decide the graph's steps."""

    def __call__(self, info: types.BatchInfo) -> tuple[Any, ...]:
        """Give the arrays of one batch; raise StopIteration behind the last."""


# Only what stands in this function may branch on a feed (DALI rewrites its `if`).
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
        columns: gives numbers for each slice; its `feeds` decide which steps there are.
            Without a target the graph ends with the resample.
        slices: gives the slices, in memory that DALI reads in place: it must stay as it
            is until the batch has come out.
        windows: C windows, in channel order.
        normalization: per channel.
        on_gpu: do everything on the GPU; slices go up as uint16.
        uploaded: the slices come from the GPU's memory.

    Returns:
        images float16 (S, S, C) a slice; targets; store positions. Or the resampled
        slices alone, uint16 (S, S, 1 or 3).
    """
    fed = {
        **_read(columns),
        **_read(
            slices,
            no_copy=True,
            device="gpu" if uploaded else "cpu",
            # Slices of the host bring it along; DALI would wrap each once more.
            layout=SLICE_LAYOUT if uploaded else None,
        ),
    }
    if on_gpu:
        for name in _ON_GPU & fed.keys():
            fed[name] = fed[name].gpu()
    stored = fed["stored"]
    if "before" in fed:
        stored = fn.cat(fed["before"], stored, fed["after"], axis=2)
    elif not on_gpu:
        # Copied in sequence, slices are in the cache when the resample reads them in
        # any direction: 187 -> 114 us a slice, both together (bench/LOG.md, 2026-11).
        stored = fn.copy(stored)
    for step in range(sum(name.startswith("halves.") for name in fed)):
        if fed[f"halves.{step}"]:
            # Bilinear, read where four pixels meet: their mean. Six times the rate
            # of an antialiased fn.resize (see bench/LOG.md).
            stored = fn.experimental.warp_perspective(
                stored, matrix=_DOUBLE, size=fed[f"halved.{step}"], fill_value=0
            )
    warped = fn.experimental.warp_perspective(
        stored, matrix=fed["matrix"], size=fed["size"], fill_value=0
    )
    if "target" in fed:
        image = _shade(warped, windows, normalization, fed)
        outputs = [image, fed["target"], fed["index"]]
    else:
        outputs = [warped]
    return tuple(outputs)


@do_not_convert
def _shade(
    warped: Any,
    windows: Sequence[Window],
    normalization: Normalization,
    fed: Mapping[str, Any],
) -> Any:
    """All channels of the image, with holes."""
    laws = list(zip(windows, normalization.mean, normalization.std, strict=True))
    image = _join(
        [_channel(warped, number, law, fed) for number, law in enumerate(laws)]
    )
    if "corners" not in fed:
        return image
    return fn.erase(
        image,
        anchor=fed["corners"],
        shape=fed["sides"],
        axis_names="HW",
        fill_value=[
            float(window_table(window, mean=mean, std=std)[0])
            for window, mean, std in laws
        ],
    )


@do_not_convert
def _read(source: BatchSource, **options: Any) -> dict[str, Any]:
    """The feeds of a source, by name."""
    feeds = [_feed_of(name) for name in source.feeds]
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


def _look_up(
    stored: Any, table_V: npt.NDArray[np.float32], dtype: types.DALIDataType
) -> Any:
    keys = list(range(len(table_V)))
    return fn.lookup_table(stored, keys=keys, values=table_V.tolist(), dtype=dtype)


def _channel(
    warped: Any, number: int, law: tuple[Window, float, float], fed: Mapping[str, Any]
) -> Any:
    """One channel: windowed, lit, normalised and in float16.

    Arithmetic takes no float16 in DALI and is slow on the CPU, an exponential above
    all. So what can be tabulated is: the window and the normalisation; with
    lighting, first the logit and then, on a fine grid, the way back from it.
    """
    window, mean, std = law
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
    """The step, uint16, of the grid that a logit, float32, is lit to.

    From 2**23 to 2**24 every float32 is whole, and its low 23 bits say by how much it
    is above 2**23. So a sum there is rounded by being formed, and its bits, read as an
    int32, less those of 2**23, are the step. Bits of sums from 0 on are in order, so
    what lies beyond the grid lands at its ends; `AugmentConfig.max_lighting` keeps sums
    from falling below 0.

    Source:
        IEEE 754-2019, 3.4, binary32. On the CPU DALI takes two to four times as long
        to cast float32 to uint16 as it takes for int32 (bench/LOG.md, 2026-11).
    """
    # float32 has room for whole steps only where the grid begins, so brightness is
    # rounded to one here, and then the sum is.
    lit = fn.brightness_contrast(
        logit,
        contrast=fed["contrast"] * float(LOGIT_STEPS),
        contrast_center=0.0,
        brightness_shift=fed["brightness"] * float(LOGIT_STEPS) + float(LOGIT_ZERO),
        dtype=types.FLOAT,  # of this type, a shift is added as it is
    )
    bits = fn.reinterpret(lit, dtype=types.INT32)
    bits_of_first = int(np.float32(_FIRST_STEP).view(np.int32))
    return fn.cast(bits - bits_of_first, dtype=types.UINT16)


def _window_by_slice(
    warped: Any, number: int, shape: str, fed: Mapping[str, Any]
) -> Any:
    """A value in [0, 1], float32, through a window that differs by slice."""
    hu = fn.cast(warped, dtype=types.FLOAT) - float(HU_OFFSET)
    distance = (hu - fed["center"][number]) / fed["width"][number]
    if shape == "sigmoid":
        return 1.0 / (1.0 + math.exp(-4.0 * distance))
    return math.clamp(distance + 0.5, 0.0, 1.0)


def _value_of_step() -> npt.NDArray[np.float32]:
    """The value in [0, 1] of every step of the logit grid."""
    logit_V = (_FIRST_STEP + np.arange(65_536) - LOGIT_ZERO) / LOGIT_STEPS
    return (1.0 / (1.0 + np.exp(-logit_V))).astype(np.float32)


def _logit_table(window: Window) -> npt.NDArray[np.float32]:
    """Every stored value's windowed value, in logit space."""
    value_V = window_table(window, mean=0.0, std=1.0)
    # In float32, as the twin does: the greatest number below 1 has a logit of 15.9.
    value_V = np.clip(value_V, LOGIT_EPSILON, 1.0 - LOGIT_EPSILON).astype(np.float64)
    return np.log(value_V / (1.0 - value_V)).astype(np.float32)


def _join(channels: Sequence[Any]) -> Any:
    return fn.cat(*channels, axis=2) if len(channels) > 1 else channels[0]
