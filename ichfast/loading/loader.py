"""The loader: batches of a store through the DALI graph.

What an epoch means here (if the code disagrees, the code is wrong):

1. Only `Sampler` decides the order; only `augment.parameters.draw` decides the
   parameters.
2. `epoch(k)` gives the same batches each time, starting at any batch.
3. Validation gives every slice exactly once; the last batch is short, never padded
   and never dropped. Training gives full batches only.
4. Each batch carries the store positions it was read from.
5. An epoch may be left early and another one started; the loader may be closed at any
   time.
6. An error while reading is raised as an `IchfastError` that says what to do, and
   closes the loader.
7. Keeping slices in memory (`DataConfig.cache`) does not change a bit of any batch.

`DaliLoader` hands out epochs, `GraphRunner` runs the DALI graph, and
`loading.feeds.LoaderFeeds` gives the graph its inputs.

Shape letters: N slices of the store, B slices of the batch, H rows, W columns,
C windows, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, NoReturn

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
    no_normalization,
    parse_windows,
)
from ichfast.loading.dali import as_array, as_torch, failure_reason
from ichfast.loading.feeds import LoaderFeeds
from ichfast.loading.graph import graph_is_whole, pipeline_options, slice_graph
from ichfast.loading.sampler import BagSampler, Sampler, make_sampler
from ichfast.loading.shading import Shader
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.system.upload import upload
from ichfast.windows import Normalization


def make_loader(  # noqa: PLR0913 - all but three are keywords with a default
    store: Store,
    slices_N: npt.ArrayLike,
    config: DataConfig,
    *,
    normalization: Normalization | None = None,
    augment: AugmentConfig | None = None,
    shuffle: bool = False,
    seed: int = 0,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    device: torch.device | str = "cpu",
) -> DaliLoader:
    """Build a loader over some slices of a store.

    Args:
        store: open for reading; must outlive the loader.
        slices_N: store positions of the split, whole numbers, shape (N,).
        config: size, batch size, level, windows, cache.
        normalization: mean and standard deviation per window, from
            `loading.config.measure_normalization`. None leaves windowed values in
            [0, 1].
        augment: distributions to draw from; None changes nothing.
        shuffle: True to train, False to validate or predict.
        seed: run seed, for the order and the augmentation.
        ranks: this process among all that share the split. They must be in one torch
            process group if `config.cache` is ``host``.
        device: the CPU, or the current CUDA device.

    Returns:
        A `loading.batch.Loader` that is also a context manager.

    Raises:
        LoaderError: `slices_N` is empty, not of positions, or less than one batch; the
            store lacks the level; the seed is below 0; `config` asks for a
            normalization and none is given; slices do not fit where `config.cache`
            wants them; or there is no such device.
        StoreError: the store is closed, or damaged where slices are kept.

    Example:
        >>> import ichfast
        >>> config = ichfast.DataConfig(size=64, batch_size=32)
        >>> with ichfast.Store("ichfast-store") as store:
        ...     with ichfast.make_loader(store, range(len(store)), config) as loader:
        ...         batch = next(iter(loader))
        >>> batch.images_BCHW.shape
        torch.Size([32, 1, 64, 64])
    """
    store.check_open()
    slices_N = _check_positions(store, slices_N)
    device_type = _check_device(device)
    normalization = _check_normalization(normalization, config)
    sampler = make_sampler(
        config.sampling,
        store,
        slices_N,
        bag_slices=config.bag_slices,
        batch_size=config.batch_size,
        shuffle=shuffle,
        seed=int(seed),  # NumPy's integers overflow at 64 bits without a sign
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
        device=device_type,
    )


def _check_positions(store: Store, slices_N: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Check store positions and convert them to int64."""
    found_N = np.asarray(slices_N)
    if found_N.size and found_N.dtype.kind not in "iu":
        raise LoaderError(
            f"slices are store positions, whole numbers; got {found_N.dtype}; "
            "for a mask pass np.flatnonzero(mask)"
        )
    position_N = found_N.astype(np.int64)
    outside = position_N[(position_N < 0) | (position_N >= len(store))]
    if outside.size:
        raise LoaderError(
            f"{store.path} holds slices 0 to {len(store) - 1}, asked for {outside[0]}"
        )
    return position_N


def _check_normalization(
    given: Normalization | None, config: DataConfig
) -> Normalization:
    """Return the given normalization, or one that changes nothing if none is needed."""
    num_windows = len(config.windows)
    if given is None and config.normalize != "none":
        raise LoaderError(
            f"data.normalize is {config.normalize}, which a loader does not measure; "
            "pass normalization=measure_normalization(store, TRAINING_SLICES, config)"
        )
    given = given or no_normalization(num_windows)
    if len(given.mean) != num_windows:
        raise LoaderError(
            f"expected a mean and a standard deviation for each of {num_windows} "
            f"window(s), got {len(given.mean)}"
        )
    return given


def _check_device(device: torch.device | str) -> str:
    """Return ``cpu``, or ``cuda`` for the current CUDA device."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise LoaderError(f"device is cpu or cuda, got {device!r}") from error
    if found.type not in ("cpu", "cuda"):
        raise LoaderError(f"device is cpu or cuda, got {device!r}")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise LoaderError("device is cuda, but torch finds no GPU; take cpu")
        current = torch.cuda.current_device()
        if found.index not in (None, current):
            raise LoaderError(
                f"device is {found}, but a loader runs on the current CUDA device, "
                f"{current}; call torch.cuda.set_device({found.index}) first"
            )
    return found.type


class DaliLoader:
    """Batches of a store through DALI. Made by `make_loader`.

    It gives one epoch at a time, and is not safe to share between threads.
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
        self._sampler = sampler
        self.config = config
        self.level = choose_level(store, config)
        self.device = device
        self._num_epochs = 0
        """Epochs that `__iter__` has begun."""

        self._num_begun = 0
        """Epochs begun, plus changes of the augmentation; outdates iterators."""

        windows = parse_windows(config.windows)
        whole, on_gpu = graph_is_whole(device), device != "cpu"
        self._shader = None if whole else Shader(windows, normalization)
        self._feeds = LoaderFeeds(
            store,
            sampler,
            config,
            level=self.level,
            augment=augment,
            whole=whole,
            on_gpu=on_gpu,
            ranks=ranks,
        )
        graph = partial(
            slice_graph,
            windows=windows,
            normalization=normalization,
            on_gpu=on_gpu,
            uploaded=isinstance(self._feeds.source, DeviceSlices),
            **pipeline_options(config.batch_size, on_gpu=on_gpu),
        )
        self._graph = GraphRunner(graph, self._feeds, on_gpu=on_gpu)

    def __reduce__(self) -> NoReturn:
        raise LoaderError(
            "a loader has threads and buffers of its own process, and cannot be copied "
            "or pickled; call make_loader in the process that uses it"
        )

    def __len__(self) -> int:
        """Batches in one epoch."""
        return len(self._sampler)

    @property
    def num_slices(self) -> int:
        """Slices in one epoch."""
        return self._sampler.num_slices

    def __repr__(self) -> str:
        kept = "" if self.config.cache == "none" else f", kept: {self.config.cache}"
        return (
            f"DaliLoader({self.num_slices} slices in {len(self)} batches of "
            f"{self.config.batch_size}, level {self.level} -> {self.config.size} px, "
            f"windows {'+'.join(self.config.windows)}, {self.device}{kept}"
            f"{', closed' if self._graph.closed else ''})"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the next epoch: 0 the first time, then 1, and so on."""
        epoch = self._num_epochs
        self._num_epochs += 1
        return self.epoch(epoch)

    def set_size(self, size: int) -> None:
        """Change the side of the images, pixels, from the next epoch on.

        The batches equal those of a loader made with that size, except that the level
        chosen for the first size is kept.

        Raises:
            LoaderError: the size is out of range.
        """
        self.config = replace(self.config, size=size)

    def set_augment(self, augment: AugmentConfig) -> None:
        """Change the distributions to draw from, and end the current epoch.

        The batches equal those of a loader made with that augmentation. The graph is
        built again; slices kept in memory stay.

        Raises:
            LoaderError: the loader is closed.
        """
        self._graph.check_open()
        if augment != self._feeds.augment:
            self._graph.drain()
            self._num_begun += 1
            self._feeds.set_augment(augment)
            self._graph.rebuild()

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of one epoch.

        Args:
            epoch: counted from 0.
            first_batch: the first batch to return, counted from 0.

        Raises:
            LoaderError: the loader is closed, another epoch was begun, or the disk does
                not respond.
            StoreError: a shard is damaged, missing, or cannot be read.
        """
        if epoch < 0 or first_batch < 0:
            raise LoaderError(
                "epochs and batches are counted from 0, got epoch "
                f"{epoch} from batch {first_batch} on"
            )
        self._graph.check_open()
        self._graph.drain()
        self._num_begun += 1
        own_number = self._num_begun
        if self._feeds.set_size(self.config.size):
            self._graph.rebuild()
        self._feeds.start(epoch, first_batch)
        bag_targets = None
        if isinstance(self._sampler, BagSampler):
            bag_targets = self._sampler.bag_targets(epoch)
        for iteration in count(first_batch):
            if own_number != self._num_begun:
                raise LoaderError(
                    "another epoch of this loader was begun, or its augmentation "
                    "changed; it gives one epoch at a time"
                )
            outputs = self._graph.run()
            if outputs is None:
                return
            batch = self._batch(outputs)
            if bag_targets is not None:
                batch = self._add_bags(batch, bag_targets, iteration)
            yield batch

    def _add_bags(
        self, batch: Batch, bag_targets: npt.NDArray[np.float32], iteration: int
    ) -> Batch:
        """Add the targets of its bags to a batch.

        Args:
            batch: its targets are those of its slices.
            bag_targets: those of all bags of the epoch, batch after batch.
            iteration: the batch, counted from 0.
        """
        num_blocks = len(bag_targets) // len(self)
        rows = slice(iteration * num_blocks, (iteration + 1) * num_blocks)
        bag_targets_DK = upload(bag_targets[rows], batch.targets_BK.device)
        return batch._replace(targets_BK=torch.cat([batch.targets_BK, bag_targets_DK]))

    def _batch(self, outputs: Sequence[Any]) -> Batch:
        """Make a batch from the outputs of the graph."""
        if self._shader is None:
            image_BHWC, target_BK, index_B1 = (
                as_torch(tensors, on_gpu=self.device != "cpu") for tensors in outputs
            )
        else:
            numbers = self._feeds.columns.take_held_back()
            image_BHWC = torch.from_numpy(self._shader(as_array(*outputs), numbers))
            target_BK = torch.from_numpy(numbers["target"])
            index_B1 = torch.from_numpy(numbers["index"])
        return Batch(
            images_BCHW=image_BHWC.permute(0, 3, 1, 2),
            targets_BK=target_BK,
            indices_B=index_B1[:, 0],
        )

    def close(self) -> None:
        """Stop all threads and free all buffers. Batches given out stay valid."""
        self._graph.close()

    def __enter__(self) -> DaliLoader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class GraphRunner:
    """Builds the DALI graph of a loader, runs it, drains it and shuts it down.

    Args:
        graph: makes a DALI pipeline from the numbers and the slices of `feeds`.
        feeds: the inputs of the graph; their source is closed with the graph.
        on_gpu: run on the current CUDA device.
    """

    def __init__(
        self, graph: Callable[..., Any], feeds: LoaderFeeds, *, on_gpu: bool
    ) -> None:
        self.closed = False
        self._graph = graph
        self._feeds = feeds
        self._on_gpu = on_gpu
        self._pipeline = self._build()

    def _build(self) -> Any:
        pipeline = self._graph(self._feeds.columns, self._feeds.slices)
        pipeline.build()
        return pipeline

    def rebuild(self) -> None:
        """Build the graph again, for feeds that have changed."""
        self._shut_down()
        self._pipeline = self._build()

    def run(self) -> Sequence[Any] | None:
        """Return the outputs of the next batch; None after the last of an epoch.

        Raises:
            LoaderError: the graph is closed, or has failed.
        """
        self.check_open()
        try:
            outputs = self._run_pipeline()
        except BaseException as error:
            self.close()  # DALI cannot continue after an error
            if not isinstance(error, RuntimeError):
                raise
            reason = failure_reason(error)
            raise LoaderError(f"the DALI pipeline failed: {reason}") from error
        if outputs is not None:
            self._feeds.source.release()
        return outputs

    def _run_pipeline(self) -> Sequence[Any] | None:
        try:
            if self._on_gpu:
                # Ordered on torch's stream: the host does not wait.
                return self._pipeline.run(torch.cuda.current_stream())
            return self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
            self._feeds.schedule.running = False
            self._feeds.source.discard()
            return None

    def drain(self) -> None:
        """Discard the batches prepared for an epoch that was left early."""
        if self._feeds.schedule.running:
            self._feeds.schedule.stop()
            while self.run() is not None:
                pass

    def check_open(self) -> None:
        """Raise a LoaderError if the graph is closed."""
        if self.closed:
            raise LoaderError("the loader is closed; make another with make_loader")

    def close(self) -> None:
        """Shut the graph down and close its feeds; may be called again."""
        if not self.closed:
            self.closed = True
            self._shut_down()
            self._feeds.source.close()

    def _shut_down(self) -> None:
        self._pipeline._shutdown()  # DALI has no public way to close
