"""Batches for a model, against the warp alone and other loaders.

All contenders give exp-30's input: one window, rotation, zoom, flip, lighting, cutout,
float16. A turn is one epoch over the same slices, with its start; a small store is
loaded several times over. The limit is a DALI pipeline with the resample only: its
slices are in memory, which is pinned for a GPU, and halved where the loader halves
them; its parameters are drawn already, and it has no window, lighting or holes. On a
GPU there are two more limits: copies of the stored bytes to the GPU, and within it.

The cost of comparing slices with their checksums is measured apart: a turn is the first
epoch of a new loader, in which `data.check=first` compares each slice, against those of
new loaders that never or always do. Two loaders that live on differ by up to a tenth,
because their memory lies in other places.

Shape letters: N slices of an epoch, B slices of a batch, H rows, W columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types  # noqa: TID251 - the limit

from bench.harness.loading import open_loader, run_epoch
from bench.harness.measure import Contender, Meter, Record
from bench.harness.workload import Workload, common_slices
from bench.peers import PEERS, peers_of, reason_to_skip
from bench.peers.task import LoaderTask
from ichfast.augment.geometry import count_halvings, halved_shape
from ichfast.augment.parameters import draw
from ichfast.loading.config import CHECKS, measure_normalization
from ichfast.loading.dali import wrap_columns, wrap_host_slices
from ichfast.loading.graph import pipeline_options
from ichfast.loading.loader import DaliLoader
from ichfast.recipes.reference import exp_30
from ichfast.store.levels import halve_into
from ichfast.store.store import Store
from ichfast.windows import parse_window

STAGE = "loader"
MAX_PEER_SLICES = 2048
"""Upper limit of the slices of a peer in a turn; its start no longer matters there."""

MAX_WARP_BYTES = 2**30
"""Upper limit of the memory of the slices that are only resampled. More slices than it
holds are those in it again."""

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
            records += _measure_checks(store, level, workload, meter)
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
        count: How many; slices of a smaller store are picked several times.
    """
    slices_N = common_slices(store)
    num_different = min(count, len(slices_N))
    places_N = np.linspace(0, len(slices_N) - 1, num_different).astype(int)
    return np.resize(slices_N[places_N], count)


def _measure_level(
    store: Store, level: int, workload: Workload, meter: Meter
) -> list[Record]:
    positions_N = pick_slices(store, workload.num_loaded)
    task = make_task(store, level, workload)
    whole = replace(task, positions_N=positions_N)
    with ExitStack() as stack:
        loader = stack.enter_context(open_loader(store, whole))
        warp = _opened_late(partial(WarpAlone, store, whole), stack)
        contenders = [
            Contender(name="ichfast", role="ichfast", run=lambda: run_epoch(loader)),
            Contender(
                name="warp alone",
                role="limit",
                before=warp,
                run=lambda: warp().run(),
            ),
        ]
        if workload.device != "cpu":
            contenders += gpu_copies(store, whole)
        for name in peers_of(STAGE, workload.peers):
            # A PNG has the source's resolution, so it is a peer at that level only.
            if reason_to_skip(name) or (
                name == "fastai-png" and level != store.levels[0]
            ):
                continue
            contenders.append(_peer_contender(name, task, stack))
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


def _measure_checks(
    store: Store, level: int, workload: Workload, meter: Meter
) -> list[Record]:
    """Compare first epochs that compare slices with their checksums or do not."""
    task = make_task(store, level, workload)
    with ExitStack() as stack:
        loaders = {
            check: stack.enter_context(closing(_NewLoader(store, task, check)))
            for check in CHECKS
        }
        return meter.compare(
            [
                Contender(
                    name="ichfast" if check == task.data.check else check,
                    role="ichfast" if check == task.data.check else "limit",
                    before=loader.open,
                    run=loader.run,
                )
                for check, loader in loaders.items()
            ],
            stage=STAGE,
            case=f"level {level} to {workload.size}, data.check",
            unit="slices",
            cache="hot",
            settings={
                "slices": len(task.positions_N),
                "level": level,
                "size": workload.size,
                "batch_size": workload.batch_size,
            },
        )


class _NewLoader:
    """A contender whose turns are first epochs, each of a new loader.

    Args:
        store: Holds the slices.
        task: What is loaded.
        check: When the loaders compare slices with their checksums.
    """

    def __init__(self, store: Store, task: LoaderTask, check: str) -> None:
        self._store = store
        self._task = replace(task, data=replace(task.data, check=check))
        self._loader: DaliLoader | None = None

    def open(self) -> None:
        """Open a new loader in place of the last one."""
        self.close()
        self._loader = open_loader(self._store, self._task)

    def run(self) -> int:
        """Run its first epoch; returns the slices."""
        assert self._loader is not None
        return run_epoch(self._loader)

    def close(self) -> None:
        """Close the loader that is open."""
        if self._loader is not None:
            self._loader.close()


def _opened_late(make: Callable[[], Any], stack: ExitStack) -> Callable[[], Any]:
    """Make a contender's object when it is first asked for, and close it at the end.

    So it is made in the contender's own warm-up: if that fails, only it is left out.

    Args:
        make: Returns an object with a method `close`.
        stack: Closes it.
    """

    @cache
    def opened() -> Any:
        made = make()
        stack.callback(made.close)
        return made

    return opened


def _peer_contender(name: str, task: LoaderTask, stack: ExitStack) -> Contender:
    epochs = itertools.count()
    peer = _opened_late(
        lambda: import_module(PEERS[name].module).make(task),
        stack,
    )
    return Contender(
        name=name,
        role="peer",
        before=peer,
        run=lambda: sum(batch.num_slices for batch in peer().epoch(next(epochs))),
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
        no_copy=True,
    )
    return fn.experimental.warp_perspective(
        stored.gpu() if on_gpu else fn.copy(stored),  # which brings it into the cache
        matrix=matrix,
        size=[size, size],
        fill_value=0,
    )


class WarpAlone:
    """The limit: full batches of the same slices, resampled and nothing else.

    It holds as many different batches as fit into `MAX_WARP_BYTES`, at least one.

    Args:
        store: Holds the slices.
        task: Gives the slices, the level, the size and the device.
    """

    def __init__(self, store: Store, task: LoaderTask) -> None:
        self._batch_size = task.batch_size
        self._num_batches = len(task.positions_N) // task.batch_size
        self._on_gpu = task.device != "cpu"
        self._batches = self._load(store, task)
        self._pipeline = _warp_graph(
            self._give,
            size=task.size,
            on_gpu=self._on_gpu,
            **pipeline_options(task.batch_size, on_gpu=self._on_gpu),
        )
        self._pipeline.build()

    def _load(
        self, store: Store, task: LoaderTask
    ) -> list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]]:
        """Load batches: slices, shape (B, H, W), and matrices, shape (B, 3, 3)."""
        batches: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]] = []
        num_bytes = 0
        for number in range(self._num_batches):
            first = number * task.batch_size
            stored_BHW, matrix_B33 = _stored_and_matrix(
                store, task, task.positions_N[first:][: task.batch_size]
            )
            num_bytes += stored_BHW.nbytes
            if batches and num_bytes > MAX_WARP_BYTES:
                break
            if self._on_gpu:
                stored_BHW = _pin(stored_BHW).numpy().view(np.uint16)
            batches.append((stored_BHW, matrix_B33))
        return batches

    def run(self) -> int:
        """Run one epoch, from an empty queue to an empty queue, as the loader does.

        On a GPU the work may still be under way at the end, as with the loader.
        """
        # On a stream the host does not wait for each batch.
        stream = [torch.cuda.current_stream()] if self._on_gpu else []
        while True:
            try:
                self._pipeline.run(*stream)
            except StopIteration:
                self._pipeline.reset()
                return self._num_batches * self._batch_size

    def close(self) -> None:
        """Stop DALI's threads."""
        self._pipeline._shutdown()

    def _give(self, info: Any) -> tuple[Any, ...]:
        """Return a batch as the loader gives it to DALI: one object, without a copy."""
        if info.iteration >= self._num_batches:
            raise StopIteration
        stored_BHW, matrix_B33 = self._batches[info.iteration % len(self._batches)]
        return (
            wrap_host_slices(stored_BHW, pinned=self._on_gpu),
            *wrap_columns([matrix_B33]),
        )


def _pin(stored_BHW: npt.NDArray[np.uint16]) -> torch.Tensor:
    """Copy slices to pinned memory, as int16, which torch can copy everywhere."""
    return torch.from_numpy(stored_BHW.view(np.int16)).pin_memory()


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
    pinned_BHW = _pin(stored_BHW)
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
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    """Read slices of one shape, and draw a matrix for each.

    Args:
        store: Holds the slices.
        task: Gives the level, the size and the augmentation.
        picked_B: Store positions.
    """
    stored_BHW = np.stack([_source_HW(store, task, int(k)) for k in picked_B])
    drawn = draw(
        task.augment,
        seed=0,
        epoch=0,
        slices_B=picked_B,
        source_shape_B2=np.tile(stored_BHW.shape[1:], (len(picked_B), 1)),
        size=task.size,
    )
    return stored_BHW, drawn.matrix_B33


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
