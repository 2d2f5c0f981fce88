"""Batches for a model, against the warp alone and other loaders.

All contenders give exp-30's input: one window, rotation, zoom, flip, lighting, cutout,
float16. A turn is one epoch over the same slices, with its start. The limit is a DALI
pipeline with the resample only: its slices are in memory, halved where the loader
halves them, its parameters are drawn already, and it has no window, lighting or holes.
On a GPU there are two more limits: copies of the stored bytes to the GPU, and within
it.

Shape letters: N slices of an epoch, B slices of a batch, H rows, W columns.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types  # noqa: TID251 - the limit

from bench.harness.loading import open_loader
from bench.harness.measure import Contender, Meter, Record
from bench.harness.workload import Workload, common_slices
from bench.peers import PEERS, peers_of, reason_to_skip
from bench.peers.task import LoaderTask
from ichfast.augment.geometry import count_halvings, halved_shape
from ichfast.augment.parameters import draw
from ichfast.loading.config import measure_normalization
from ichfast.loading.graph import pipeline_options
from ichfast.loading.loader import DaliLoader
from ichfast.recipes.reference import exp_30
from ichfast.store.levels import halve_into
from ichfast.store.store import Store
from ichfast.windows import parse_window

STAGE = "loader"
MAX_PEER_SLICES = 4096
"""Upper limit of the slices of a peer in a turn; its start no longer matters there."""

GPU_COPIES = ("upload", "copy on the GPU")
"""Limits of a GPU: stored bytes copied from pinned memory, and from its own memory."""


def measure(workload: Workload, meter: Meter) -> list[Record]:
    """Measure the loader from each level, slices per second.

    Args:
        workload: What is measured.
        meter: Makes the records.
    """
    records = []
    with workload.open_store() as store:
        for level in store.levels:
            records += _measure_level(store, level, workload, meter)
        case = f"level {store.levels[0]} to {workload.size}"
    if workload.device == "cpu":
        records += [
            meter.left_out(
                stage=STAGE, case=case, name=name, role="limit", reason="no GPU is used"
            )
            for name in GPU_COPIES
        ]
    return records + [
        meter.left_out(
            stage=STAGE, case=case, name=name, role="peer", reason=reason_to_skip(name)
        )
        for name in peers_of(STAGE, workload.peers)
        if reason_to_skip(name)
    ]


def make_task(store: Store, level: int, workload: Workload) -> LoaderTask:
    """Make the task of a peer: that of ichfast, with at most `MAX_PEER_SLICES` slices.

    Args:
        store: Holds the slices.
        level: Level of the store that is read.
        workload: Gives size, batch size, device and folders.
    """
    recipe = exp_30()
    data = replace(
        recipe.data,
        level=level,
        size=workload.size,
        batch_size=workload.batch_size,
    )
    num_slices = min(workload.num_loaded, MAX_PEER_SLICES)
    return LoaderTask(
        store_path=store.path,
        positions_N=pick_slices(store, num_slices),
        data=data,
        window=parse_window(data.windows[0]),
        normalization=measure_normalization(store, pick_slices(store, 1), data),
        augment=recipe.augment,
        workers=workload.processes if workload.processes > 1 else 0,
        device=workload.device,
        png_dir=workload.scratch_dir / "png",
        npy_dir=workload.scratch_dir / "npy",
        beton_dir=workload.scratch_dir / "beton",
    )


def pick_slices(store: Store, count: int) -> npt.NDArray[np.int64]:
    """Pick slices of one shape, evenly over the store.

    Args:
        store: Holds the slices.
        count: How many; all slices of the shape if there are fewer.
    """
    slices_N = common_slices(store)
    return slices_N[
        np.linspace(0, len(slices_N) - 1, min(count, len(slices_N))).astype(int)
    ]


def _measure_level(
    store: Store, level: int, workload: Workload, meter: Meter
) -> list[Record]:
    positions_N = pick_slices(store, workload.num_loaded)
    task = make_task(store, level, workload)
    whole = replace(task, positions_N=positions_N)
    with ExitStack() as stack:
        loader = stack.enter_context(open_loader(store, whole))
        warp = _WarpAlone(store, whole)
        stack.callback(warp.close)
        contenders = [
            Contender(name="ichfast", role="ichfast", run=lambda: _run_epoch(loader)),
            Contender(name="warp alone", role="limit", run=warp.run),
        ]
        if workload.device != "cpu":
            contenders += gpu_copies(store, whole)
        for name in peers_of(STAGE, workload.peers):
            # A PNG has the source's resolution, so it is a peer at that level only.
            if reason_to_skip(name) or (
                name == "fastai-png" and level != store.levels[0]
            ):
                continue
            peer = import_module(PEERS[name].module).make(task)
            stack.callback(peer.close)
            contenders.append(_peer_contender(name, peer, task))
        return meter.compare(
            contenders,
            stage=STAGE,
            case=f"level {level} to {workload.size}",
            unit="slices",
            cache="hot",
            settings={
                "recipe": "exp-30",
                "slices": len(positions_N),
                "level": level,
                "size": workload.size,
                "batch_size": workload.batch_size,
                "windows": list(exp_30().data.windows),
            },
        )


def _run_epoch(loader: DaliLoader) -> int:
    return sum(len(batch) for batch in loader)


def _peer_contender(name: str, peer: Any, task: LoaderTask) -> Contender:
    epochs = itertools.count()
    return Contender(
        name=name,
        role="peer",
        run=lambda: sum(len(batch) for batch in peer.epoch(next(epochs))),
        settings={"slices": len(task.positions_N), "workers": task.workers},
    )


@pipeline_def  # type: ignore[untyped-decorator]
def _warp_graph(source: Any, *, size: int, on_gpu: bool) -> Any:
    stored, matrix = fn.external_source(
        source=source,
        batch=True,
        batch_info=True,
        num_outputs=2,
        dtype=[types.UINT16, types.FLOAT],
        ndim=[3, 2],
        layout=["HWC", ""],
    )
    return fn.experimental.warp_perspective(
        stored.gpu() if on_gpu else fn.copy(stored),  # which brings it into the cache
        matrix=matrix,
        size=[size, size],
        fill_value=0,
    )


class _WarpAlone:
    """The limit: full batches of the same slices, resampled and nothing else."""

    def __init__(self, store: Store, task: LoaderTask) -> None:
        self._batches = [
            _stored_and_matrix(store, task, task.positions_N[first:][: task.batch_size])
            for first in range(
                0, len(task.positions_N) - task.batch_size + 1, task.batch_size
            )
        ]
        self._num_slices = len(self._batches) * task.batch_size
        on_gpu = task.device != "cpu"
        self._pipeline = _warp_graph(
            self._give,
            size=task.size,
            on_gpu=on_gpu,
            **pipeline_options(task.batch_size, on_gpu=on_gpu),
        )
        self._pipeline.build()

    def run(self) -> int:
        """Run one epoch, from an empty queue to an empty queue, as the loader does."""
        while True:
            try:
                self._pipeline.run()
            except StopIteration:
                self._pipeline.reset()
                return self._num_slices

    def close(self) -> None:
        """Stop DALI's threads."""
        self._pipeline._shutdown()

    def _give(self, info: Any) -> tuple[list[Any], Any]:
        if info.iteration >= len(self._batches):
            raise StopIteration
        return self._batches[info.iteration]


class CopyAlone:
    """A limit of a GPU: copies of a batch of stored bytes.

    Args:
        source: A batch; copied without waiting if it is pinned or on a GPU.
        target: A tensor of the same shape, on the device to copy to.
        num_batches: Copies in a turn.
    """

    def __init__(
        self, source: torch.Tensor, target: torch.Tensor, num_batches: int
    ) -> None:
        self._source, self._target = source, target
        self._num_batches = num_batches

    def run(self) -> int:
        """Copy the batches of an epoch without waiting; returns the slices."""
        for _ in range(self._num_batches):
            self._target.copy_(self._source, non_blocking=True)
        return self._num_batches * len(self._source)


def gpu_copies(store: Store, task: LoaderTask) -> list[Contender]:
    """Make the limits of a GPU: copies of stored bytes over the bus, and on the GPU.

    The same batch is copied each time, so a part may come from the GPU's cache.

    Args:
        store: Holds the slices.
        task: Gives the slices, the level and the device.
    """
    picked_B = task.positions_N[: task.batch_size]
    stored_BHW = np.stack([store.slice_HW(int(k), task.level) for k in picked_B])
    pinned_BHW = torch.from_numpy(stored_BHW.view(np.int16)).pin_memory()
    resident_BHW = pinned_BHW.to(task.device)
    num_batches = len(task.positions_N) // task.batch_size
    sources = dict(zip(GPU_COPIES, (pinned_BHW, resident_BHW), strict=True))
    return [
        Contender(
            name=name,
            role="limit",
            run=CopyAlone(source, torch.empty_like(resident_BHW), num_batches).run,
            settings={"unit_bytes": stored_BHW[0].nbytes},
        )
        for name, source in sources.items()
    ]


def _stored_and_matrix(
    store: Store, task: LoaderTask, picked_B: npt.NDArray[np.int64]
) -> tuple[list[Any], Any]:
    sources = [_source_HW(store, task, int(k)) for k in picked_B]
    drawn = draw(
        task.augment,
        seed=0,
        epoch=0,
        slices_B=picked_B,
        source_shape_B2=np.array([source_HW.shape for source_HW in sources]),
        size=task.size,
    )
    return [source_HW[..., np.newaxis] for source_HW in sources], drawn.matrix_B33


def _source_HW(store: Store, task: LoaderTask, position: int) -> npt.NDArray[np.uint16]:
    """Read a slice and halve it as the loader does before its resample."""
    stored_HW = store.slice_HW(position, task.level)
    shape_12 = np.array([stored_HW.shape])
    times_1 = count_halvings(shape_12[:, 0], shape_12[:, 1], task.size)
    if not times_1[0]:
        return stored_HW
    source_HW = np.empty(halved_shape(shape_12, times_1)[0], np.uint16)
    halve_into(stored_HW, int(times_1[0]), source_HW)
    return source_HW
