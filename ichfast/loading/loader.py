"""The loader: batches of a store through the DALI graph.

What an epoch means here (if the code disagrees, the code is wrong):

1. `Sampler` alone decides the order; `augment.parameters.draw` alone decides the
   parameters.
2. `epoch(k)` gives the same batches whenever it is asked for, from any batch on.
3. Validation gives every slice exactly once; the last batch is short, never padded
   and never dropped. Training gives full batches only.
4. Each batch carries the store positions it was read from.
5. Leaving an epoch early and starting another works; so does closing at any time.
6. What goes wrong while reading reaches the caller as an `IchfastError` that says what
   to do; the loader is closed then.
7. Where slices are kept (`DataConfig.cache`) changes no batch by a bit.

Shape letters: N slices of the store, B slices of the batch, H rows, W columns,
C windows, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.errors import LoaderError
from ichfast.loading.batch import Batch
from ichfast.loading.cache import DeviceSlices
from ichfast.loading.config import (
    DataConfig,
    choose_level,
    parse_windows,
    source_shapes,
)
from ichfast.loading.dali import as_array, as_torch, failure_reason
from ichfast.loading.feeds import ColumnFeeds, Scale, Schedule, SliceFeeds
from ichfast.loading.graph import graph_is_whole, pipeline_options, slice_graph
from ichfast.loading.prefetch import batches_ahead
from ichfast.loading.sampler import Sampler, make_sampler
from ichfast.loading.shading import Shader
from ichfast.loading.slice_source import make_supply
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.windows import Normalization


def make_loader(  # noqa: PLR0913 - all but three are keywords with a default
    store: Store,
    slices_N: npt.NDArray[np.int64],
    config: DataConfig,
    *,
    normalization: Normalization | None = None,
    augment: AugmentConfig | None = None,
    shuffle: bool = False,
    seed: int = 0,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    device: str = "cpu",
) -> DaliLoader:
    """Build a loader over some slices of a store.

    Args:
        store: open for reading; must outlive the loader.
        slices_N: store positions of the split.
        config: size, batch size, level, windows.
        normalization: per channel, as `loading.config.measure_normalization` settles
            `config.normalize`; None leaves windowed values in [0, 1].
        augment: what may be drawn; None changes nothing.
        shuffle: True to train, False to validate or predict.
        seed: run seed, for the order and the augmentation.
        ranks: this process among those that share the split; they are in one
            process group of torch where `config.cache` is ``host``.
        device: ``cpu``, or ``cuda`` for the current CUDA device.

    Returns:
        A `loading.batch.Loader`, and a context manager that closes it.

    Raises:
        LoaderError: no slice, what is no position, a level the store lacks, less than
            one batch, a seed below 0, no normalization though `config` asks for one,
            slices that do not fit where `config.cache` wants them, or no such device.
        StoreError: the store is closed; or damaged, where slices are kept.

    Example:
        with Store("ichfast-store") as store:
            with make_loader(store, np.arange(len(store)), DataConfig()) as loader:
                for batch in loader:
                    batch.images_BCHW  # (64, 1, 224, 224)
    """
    store.check_open()
    slices_N = _positions(store, slices_N)
    _check_device(device)
    num_windows = len(config.windows)
    if normalization is None and config.normalize != "none":
        raise LoaderError(
            f"data.normalize is {config.normalize}, which a loader does not settle; "
            "pass normalization=measure_normalization(store, TRAINING_SLICES, config)"
        )
    normalization = normalization or Normalization(
        mean=(0.0,) * num_windows, std=(1.0,) * num_windows
    )
    if len(normalization.mean) != num_windows:
        raise LoaderError(
            f"expected a mean and a standard deviation for each of {num_windows} "
            f"window(s), got {len(normalization.mean)}"
        )
    sampler = make_sampler(
        config.sampling,
        store,
        slices_N,
        batch_size=config.batch_size,
        shuffle=shuffle,
        seed=int(seed),  # one of NumPy's is too short for 64 bits without a sign
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    if len(sampler) == 0:
        raise LoaderError(
            f"{sampler.num_drawn} slice(s) do not fill one batch of "
            f"{config.batch_size} on {ranks.world_size} device(s); lower it with "
            "--set data.batch_size=N"
        )
    return DaliLoader(
        store,
        sampler,
        config,
        normalization=normalization,
        augment=augment or AugmentConfig(),
        ranks=ranks,
        device=device,
    )


def _positions(store: Store, slices_N: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Store positions as int64, not made of what is something else."""
    found_N = np.asarray(slices_N)
    if found_N.size and found_N.dtype.kind not in "iu":
        raise LoaderError(
            f"slices are store positions, whole numbers; got {found_N.dtype}; "
            "of a mask take np.flatnonzero(mask)"
        )
    position_N = found_N.astype(np.int64)
    outside = position_N[(position_N < 0) | (position_N >= len(store))]
    if outside.size:
        raise LoaderError(
            f"{store.path} holds slices 0 to {len(store) - 1}, asked for {outside[0]}"
        )
    return position_N


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise LoaderError(f"device is cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise LoaderError("device is cuda, but torch finds no GPU; take cpu")


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
        normalization: Normalization,
        augment: AugmentConfig,
        ranks: Ranks,
        device: str,
    ) -> None:
        self.sampler = sampler
        self.config = config
        self.level = choose_level(store, config)
        self.device = device
        self._store = store
        self._normalization = normalization
        self._num_epochs = 0
        self._num_begun = 0
        self._closed = False
        self._is_whole = graph_is_whole(device)
        self._shader = Shader(parse_windows(config.windows), normalization)
        on_gpu = device != "cpu"
        self._schedule = Schedule(sampler)
        self._scale = Scale(source_shapes(store, self.level), config.size)
        self._supply = make_supply(
            store,
            sampler,
            config,
            self._scale.shape_N2,
            level=self.level,
            on_gpu=on_gpu,
            ranks=ranks,
        )
        self._slices = SliceFeeds(
            store,
            self._schedule,
            self._supply,
            config,
            scale=None if self._is_whole else self._scale,
            num_ahead=batches_ahead(config.batch_size),
            pinned=on_gpu,
        )
        self._build(augment)

    def _build(self, augment: AugmentConfig) -> None:
        """Make the graph, and what feeds it with all but slices."""
        self._augment = augment
        self._columns = ColumnFeeds(
            self._store,
            self.sampler,
            self._schedule,
            augment,
            self.config,
            scale=self._scale,
            whole=self._is_whole,
        )
        on_gpu = self.device != "cpu"
        self._pipeline = slice_graph(
            self._columns,
            self._slices,
            windows=parse_windows(self.config.windows),
            normalization=self._normalization,
            on_gpu=on_gpu,
            uploaded=isinstance(self._supply, DeviceSlices),
            **pipeline_options(self.config.batch_size, on_gpu=on_gpu),
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
        kept = "" if self.config.cache == "none" else f", kept: {self.config.cache}"
        return (
            f"DaliLoader({self.num_slices} slices in {len(self)} batches of "
            f"{self.config.batch_size}, level {self.level} -> {self.config.size} px, "
            f"windows {'+'.join(self.config.windows)}, {self.device}{kept}"
            f"{', closed' if self._closed else ''})"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the next epoch: 0 the first time, then 1, and so on."""
        epoch = self._num_epochs
        self._num_epochs += 1
        return self.epoch(epoch)

    def set_size(self, size: int) -> None:
        """Change the side of the images, from the next epoch that begins on.

        The graph stays as it is. Batches are those of a loader made with that size;
        the level read is still the one chosen for the first.

        Args:
            size: pixels.

        Raises:
            LoaderError: too small.
        """
        self.config = replace(self.config, size=size)

    def set_augment(self, augment: AugmentConfig) -> None:
        """Change what may be drawn, and end the epoch that runs.

        The graph is built anew; slices that are kept stay. Batches are those of a
        loader made with that augmentation.

        Raises:
            LoaderError: the loader is closed.
        """
        self._check_open()
        if augment != self._augment:
            self._drain()
            self._num_begun += 1
            self._shut_down()
            self._build(augment)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch, from `first_batch` on.

        Raises:
            LoaderError: the loader is closed, or its disk does not answer.
            StoreError: a shard is damaged, gone, or cannot be read.
        """
        if epoch < 0 or first_batch < 0:
            raise LoaderError(
                "epochs and batches are counted from 0, got epoch "
                f"{epoch} from batch {first_batch} on"
            )
        self._check_open()
        self._drain()
        self._num_begun += 1
        own_number = self._num_begun
        self._scale.set_size(self.config.size)
        self._schedule.start(epoch, first_batch)
        self._columns.start()
        self._slices.start()
        while True:
            if own_number != self._num_begun:
                raise LoaderError(
                    "another epoch of this loader was begun, or its augmentation "
                    "changed; it gives one epoch at a time"
                )
            outputs = self._run()
            if outputs is None:
                return
            yield self._batch(outputs)

    def _batch(self, outputs: Sequence[Any]) -> Batch:
        """A batch of what the graph gave."""
        if self._is_whole:
            image_BHWC, target_BK, index_B1 = (
                as_torch(tensors, on_gpu=self.device != "cpu") for tensors in outputs
            )
        else:
            numbers = self._columns.take_withheld()
            image_BHWC = torch.from_numpy(self._shader(as_array(*outputs), numbers))
            target_BK = torch.from_numpy(numbers["target"])
            index_B1 = torch.from_numpy(numbers["index"])
        return Batch(
            images_BCHW=image_BHWC.permute(0, 3, 1, 2),
            targets_BK=target_BK,
            indices_B=index_B1[:, 0],
        )

    def _run(self) -> Sequence[Any] | None:
        """The next outputs; None, and ready for another epoch, behind the last."""
        self._check_open()
        try:
            if self.device == "cpu":
                outputs = self._pipeline.run()
            else:
                # Ordered on torch's stream: nothing waits on the host.
                outputs = self._pipeline.run(torch.cuda.current_stream())
        except StopIteration:
            self._pipeline.reset()
            self._supply.forget()
            self._schedule.running = False
            return None
        except BaseException as error:
            self.close()  # DALI cannot go on from here
            if not isinstance(error, RuntimeError):
                raise
            reason = failure_reason(error)
            raise LoaderError(f"the DALI pipeline failed: {reason}") from error
        self._supply.give_back()
        return outputs

    def _drain(self) -> None:
        """Throw away what an epoch that was left early had prepared."""
        if self._schedule.running:
            self._schedule.stop()
            while self._run() is not None:
                pass

    def _check_open(self) -> None:
        if self._closed:
            raise LoaderError("the loader is closed; make another with make_loader")

    def close(self) -> None:
        """Stop all threads and free all buffers. Batches given out stay valid."""
        if not self._closed:
            self._closed = True
            self._shut_down()
            self._supply.close()

    def _shut_down(self) -> None:
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
