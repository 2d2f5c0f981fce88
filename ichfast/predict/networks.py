"""Networks that compute logits and features of slices, part by part.

Every rank takes a share of the parts of each task: neighbouring slices, in all passes.
A rank shows its networks the batches of the whole task, so a row is the same to the
last bit whichever rank computes it: on GPUs of one kind, or on CPUs with the same
number of threads.

Shape letters: B slices of a batch, M slices of a task, D features, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ichfast.errors import PredictionError
from ichfast.loading.batch import Batch
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.models.build import pooled_features
from ichfast.models.precision import Amp, choose_amp
from ichfast.predict.journal import Journal, Part, Rows, Task, open_journal
from ichfast.recipes.resolve import fitting_batch_size
from ichfast.runs.device import largest_batch_on_gpu
from ichfast.runs.trained import TrainedRun
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.system.terminal import progress
from ichfast.training.inference import Pass, tta_passes

LOOK_S = 2.0
"""Time between two looks at the parts of other ranks, to show them, seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkTask:
    """A network and the slices that it sees."""

    run: TrainedRun
    """The run whose best epoch it is."""

    positions_M: npt.NDArray[np.int64]
    """Store positions of the slices, rising."""

    with_features: bool
    """Whether rows have pooled features, next to logits."""

    def __or__(self, other: NetworkTask) -> NetworkTask:
        """The slices of both tasks, which have the same network."""
        return NetworkTask(
            run=self.run,
            positions_M=np.union1d(self.positions_M, other.positions_M),
            with_features=self.with_features or other.with_features,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How tasks are computed."""

    tta: str = "none"
    """Test-time augmentation: a name that `training.inference.tta_passes` takes."""

    batch_size: int | None = None
    """Slices at a time; None: as many as fit on a GPU, or the recipe's on a CPU."""

    cache: str = "none"
    """Where slices are kept between the passes: a name of `loading.config.CACHES`."""

    def passes(self, run: TrainedRun) -> list[Pass]:
        """The passes of a run."""
        return tta_passes(self.tta, run.record.recipe.augment)


@contextmanager
def compute(
    tasks: Sequence[NetworkTask],
    store: Store,
    folder: Path,
    *,
    config: ComputeConfig,
    device: torch.device,
    ranks: Ranks,
    label: str = "predict",
) -> Iterator[Journal]:
    """Compute the rows of tasks, or what is missing of them.

    Args:
        tasks: the same on every rank.
        store: the store of all tasks.
        folder: of the journal; it is removed when the block ends without an error.
        config: passes and batches.
        device: where to compute.
        ranks: the processes that share the work; each calls this.
        label: name of the work in the progress display.

    Yields:
        The journal; on rank 0 all its parts are done.

    Raises:
        IchfastError: anything that `predict.journal.open_journal`, the loader or a
            checkpoint refuses; or a network that predicts NaN.
    """
    computer = _Computer(tasks, store, config, device)
    with open_journal(
        folder, computer.settings(), computer.make_tasks, ranks
    ) as journal:
        missing = sorted(set(journal.parts) - journal.found)
        num_done = sum(len(journal.rows(part)) for part in journal.found)
        total = sum(task.num_slices * task.num_passes for task in journal.tasks)
        with progress(
            label if ranks.writes else "", total, "slice", initial=num_done
        ) as bar:
            seen = _Seen(journal, bar, ranks)
            for number in range(len(tasks)):
                of_task = [part for part in missing if part.task == number]
                computer.compute(number, _share(of_task, ranks), journal, seen)
            if ranks.writes:
                journal.wait(seen.look)
        yield journal


def _share(parts: Sequence[Part], ranks: Ranks) -> Sequence[Part]:
    """The parts of this rank, neighbours in the list."""
    first, end = (
        len(parts) * rank // ranks.world_size for rank in (ranks.rank, ranks.rank + 1)
    )
    return parts[first:end]


class _Seen:
    """Shows the parts that are done, on all ranks.

    Args:
        journal: where they are.
        bar: counts slices in all passes.
        ranks: the processes that share the work.
    """

    def __init__(self, journal: Journal, bar: tqdm[Any], ranks: Ranks) -> None:
        self._journal = journal
        self._bar = bar
        self._counted = set(journal.found)
        self._shows_others = ranks.writes and ranks.world_size > 1
        self._looked_at = time.monotonic()

    def add(self, batch: Batch) -> None:
        """Count a batch of this rank."""
        self._bar.update(batch.num_slices)

    def finish(self, part: Part) -> None:
        """Note a part of this rank, and look for those of others."""
        self._counted.add(part)
        if self._shows_others and time.monotonic() - self._looked_at > LOOK_S:
            self.look()

    def look(self) -> None:
        """Count the parts that other ranks have done."""
        new = self._journal.done() - self._counted
        self._counted |= new
        self._bar.update(sum(len(self._journal.rows(part)) for part in new))
        self._looked_at = time.monotonic()


class _Computer:
    """Computes parts with the networks of some tasks.

    Args:
        tasks: the tasks.
        store: the store of all tasks.
        config: passes and batches.
        device: where to compute.
    """

    def __init__(
        self,
        tasks: Sequence[NetworkTask],
        store: Store,
        config: ComputeConfig,
        device: torch.device,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._config = config
        self._device = device

    def settings(self) -> dict[str, Any]:
        """What decides the rows of all tasks, for the journal."""
        return {
            "checkpoints": [task.run.digest for task in self._tasks],
            "store": self._store.header.digest,
            "slices": [_digest(task.positions_M) for task in self._tasks],
            "features": [task.with_features for task in self._tasks],
            "tta": self._config.tta,
            "batch_size": self._config.batch_size,
            "device": self._device.type,
            "torch": torch.__version__,
        }

    def make_tasks(self) -> list[Task]:
        """Decide batches, and count features."""
        return [self._make_task(task) for task in self._tasks]

    def _make_task(self, task: NetworkTask) -> Task:
        recipe = task.run.record.recipe
        data, num_slices = recipe.data, len(task.positions_M)
        shape = (data.num_channels, data.size, data.size)
        batch_size = self._config.batch_size
        needs_gpu = batch_size is None and self._device.type == "cuda"
        num_features = 0
        if needs_gpu or task.with_features:
            model, amp = self._load(task.run)
            if needs_gpu:
                batch_size = largest_batch_on_gpu(model, shape, amp)
            if task.with_features:
                num_features = _count_features(model, shape, amp, self._device)
        return Task(
            num_slices=num_slices,
            num_passes=len(self._config.passes(task.run)),
            batch_size=min(
                num_slices,
                batch_size
                or fitting_batch_size(
                    data.batch_size,
                    made_for=data.size,
                    size=data.size,
                    device_type=self._device.type,
                ),
            ),
            num_features=num_features,
        )

    def _load(self, run: TrainedRun) -> tuple[nn.Module, Amp]:
        return (
            run.load_model(self._device),
            choose_amp(run.record.recipe.train.amp, self._device),
        )

    def compute(
        self, number: int, parts: Sequence[Part], journal: Journal, seen: _Seen
    ) -> None:
        """Compute parts of one task, and write them.

        Args:
            number: of the task.
            parts: sorted.
            journal: where they are written.
            seen: counts batches and parts.
        """
        if not parts:
            return
        task, shape = self._tasks[number], journal.tasks[number]
        network = _Network(task, shape, *self._load(task.run))
        place = {each: k for k, each in enumerate(sorted({p.number for p in parts}))}
        rows_M = np.concatenate([shape.rows(each) for each in place])
        passes = self._config.passes(task.run)
        with (
            self._loader(task, rows_M, shape.batch_size, passes[0]) as loader,
            _repeatable_kernels(),
        ):
            for pass_number, tta_pass in enumerate(passes):
                mine = [part for part in parts if part.pass_number == pass_number]
                if mine:
                    loader.set_augment(tta_pass.augment)
                for stretch in _stretches(mine, place):
                    first = place[stretch[0].number] * shape.part_batches
                    batches = loader.epoch(pass_number, first_batch=first)
                    for part in stretch:
                        journal.write(part, network.compute(part, batches, seen))
                        seen.finish(part)

    def _loader(
        self,
        task: NetworkTask,
        rows: npt.NDArray[np.int64],
        batch_size: int,
        first_pass: Pass,
    ) -> DaliLoader:
        record = task.run.record
        return make_loader(
            self._store,
            task.positions_M[rows],
            replace(
                record.recipe.data,
                batch_size=min(batch_size, len(rows)),
                cache=self._config.cache,
            ),
            normalization=record.normalization,
            augment=first_pass.augment,
            seed=record.recipe.train.seed,
            device=self._device.type,
        )


class _Network:
    """A network that computes rows.

    Args:
        task: what it sees.
        shape: batches and rows of the task.
        model: on its device, in evaluation mode.
        amp: number format.
    """

    def __init__(
        self, task: NetworkTask, shape: Task, model: nn.Module, amp: Amp
    ) -> None:
        self._task = task
        self._shape = shape
        self._model = model
        self._amp = amp

    @torch.inference_mode()
    def compute(self, part: Part, batches: Iterator[Batch], seen: _Seen) -> Rows:
        """Compute the rows of a part.

        Args:
            part: the part.
            batches: the next ones are those of the part.
            seen: counts batches.

        Raises:
            PredictionError: the network predicts NaN.
        """
        rows_R = np.empty(len(self._shape.rows(part.number)), self._shape.dtype)
        outputs, positions = [], []
        for batch in islice(batches, -(-len(rows_R) // self._shape.batch_size)):
            with self._amp.autocast():
                outputs.append(self._forward(batch.images_BCHW.to(self._amp.dtype)))
            positions.append(batch.indices_B)
            seen.add(batch)
        found_R = torch.cat(positions).cpu().numpy()
        expected_R = self._task.positions_M[self._shape.rows(part.number)]
        assert np.array_equal(found_R, expected_R), "the loader changed the order"
        rows_R["logits"] = torch.cat([logits for logits, _ in outputs]).cpu().numpy()
        rows_R["features"] = torch.cat([pooled for _, pooled in outputs]).cpu().numpy()
        self._check(rows_R)
        return rows_R

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and pooled features (B, D)."""
        if not self._task.with_features:
            logits_BK = self._model(images_BCHW).float()
            return logits_BK, logits_BK[:, :0].half()
        model: Any = self._model
        features = model.forward_features(images_BCHW)
        pooled_BD = model.forward_head(features, pre_logits=True).flatten(1)
        return model.forward_head(features).float(), pooled_BD.half()

    def _check(self, rows_R: Rows) -> None:
        run = self._task.run.path
        num_undefined = int(np.isnan(rows_R["logits"]).any(axis=1).sum())
        if num_undefined:
            raise PredictionError(
                f"{run} predicts NaN for {num_undefined:,} of {len(rows_R):,} slices: "
                "its weights are damaged; train it again"
            )
        num_too_large = int((~np.isfinite(rows_R["features"])).any(axis=1).sum())
        if num_too_large:
            raise PredictionError(
                f"{run} has features beyond 65,504, the limit of float16, for "
                f"{num_too_large:,} of {len(rows_R):,} slices; train it again"
            )


def _stretches(parts: Sequence[Part], place: Mapping[int, int]) -> Iterator[list[Part]]:
    """Split the parts of a pass where one is missing.

    Args:
        parts: sorted.
        place: for the number of each part, its place in the loader.
    """
    groups = groupby(enumerate(parts), lambda item: place[item[1].number] - item[0])
    for _, group in groups:
        yield [part for _, part in group]


@contextmanager
def _repeatable_kernels() -> Iterator[None]:
    """Let cuDNN choose kernels by rule, not by timing, so that all ranks have the same.

    Results then do not depend on which process computed them.
    """
    times_kernels = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = times_kernels


@torch.inference_mode()
def _count_features(
    model: Any, shape: tuple[int, int, int], amp: Amp, device: torch.device
) -> int:
    images_BCHW = torch.zeros(1, *shape, device=device, dtype=amp.dtype)
    with amp.autocast():
        return pooled_features(model, images_BCHW).shape[1]


def _digest(positions_M: npt.NDArray[np.int64]) -> list[int]:
    """Number and CRC-32C of store positions."""
    return [len(positions_M), int(google_crc32c.value(positions_M.tobytes()))]
