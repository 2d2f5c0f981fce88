"""Trains the series head on arrays, and predicts with it.

Promises:

1. Head and history, except times, are functions of arrays, settings and seed: the same
   bits each time on the same machine. torch's own random state is left as it was. Each
   epoch has a seed of its own, so it depends on the epochs before through weights and
   optimizer only, and a run that is continued after an epoch ends with the same bits.
2. The head that is returned is that of the best epoch: the one with the lowest weighted
   log loss on the validation series.

Shape letters: N slices, S series, K classes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ichfast.errors import TrainError
from ichfast.series.batches import (
    SeriesArrays,
    SeriesBatch,
    SeriesBatches,
    epoch_batches,
    map_back,
)
from ichfast.series.config import SeriesConfig
from ichfast.series.head import SeriesHead
from ichfast.series.loss import series_loss
from ichfast.training.checkpoint import restoring
from ichfast.training.history import History, best_row
from ichfast.training.inference import valid_figures
from ichfast.training.meters import moving_average
from ichfast.training.optimizers import (
    decay_groups,
    make_optimizer,
    restore_optimizer,
)
from ichfast.training.schedules import Schedule

Floats = npt.NDArray[np.float64]

BEST_BY = "valid_weighted_log_loss"
"""Column of the history that decides which epoch is best."""

MAX_GRADIENT = 1.0
"""Gradients of a larger norm are scaled down to it; those of a GRU can be large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedHead:
    """A trained head and how it was reached."""

    head: SeriesHead
    """In evaluation mode."""

    history: History
    """A row for each epoch, with the columns of `training.history`."""

    best_epoch: int
    """Index in `history` of the epoch whose weights the head has."""


class HeadTrainer:
    """Trains a head epoch by epoch, and keeps the weights of the best one.

    Args:
        train: series that train.
        valid: series of other patients, which choose the epoch.
        config: how the head is built and trained.
        device: where to train.

    Raises:
        TrainError: nothing to train or to validate on has a label.
    """

    def __init__(
        self,
        train: SeriesArrays,
        valid: SeriesArrays,
        config: SeriesConfig,
        device: torch.device,
    ) -> None:
        _check_labels("training", train)
        _check_labels("validation", valid)
        self.config, self.valid = config, valid
        self.num_epochs = config.num_epochs(len(train))
        self.history: History = []
        self.best_weights: dict[str, Tensor] = {}
        self._batches = SeriesBatches(train, config, device)
        with _seeded(device, config.seed):
            self.head = SeriesHead(train.features_ND.shape[1], config).to(device)
        self._optimizer = make_optimizer(
            "adam",
            decay_groups(self.head),
            lr=config.lr,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=config.weight_decay,
        )

    @property
    def num_slices(self) -> int:
        """Number of slices that the head reads in an epoch of training."""
        return self._batches.num_sampled

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, after a finished epoch."""
        return {
            "model": self.head.state_dict(),
            "best": self.best_weights,
            "optimizer": self._optimizer.state_dict(),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned.

        Args:
            state: from a checkpoint.

        Raises:
            CheckpointError: it does not fit the settings.
        """
        with restoring():
            if state["history"]:
                self.head.load_state_dict(state["best"])
            self.head.load_state_dict(state["model"])
        restore_optimizer(self._optimizer, state["optimizer"])
        self.best_weights = state["best"]
        self.history = list(state["history"])

    def fit(
        self,
        *,
        on_batch: Callable[[int], None] = lambda _: None,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> FittedHead:
        """Train and validate the epochs that are left.

        Args:
            on_batch: called after each batch with its number of slices.
            on_epoch: called after each epoch.

        Raises:
            TrainError: the loss is not finite.
        """
        while len(self.history) < self.num_epochs:
            row = self.train_epoch(len(self.history), on_batch)
            row |= validate_head(self.head, self.valid)
            self.history.append(row)
            if best_row(self.history, BEST_BY) is row:
                self.best_weights = copy.deepcopy(self.head.state_dict())
            on_epoch()
        self.head.load_state_dict(self.best_weights)
        return FittedHead(
            head=self.head.eval(),
            history=self.history,
            best_epoch=best_row(self.history, BEST_BY)["epoch"],
        )

    def train_epoch(
        self, epoch: int, on_batch: Callable[[int], None] = lambda _: None
    ) -> dict[str, Any]:
        """Train one epoch.

        Args:
            epoch: from 0.
            on_batch: called after each batch with its number of slices.

        Returns:
            The columns of a history row that are about training.

        Raises:
            TrainError: the loss is not finite.
        """
        started_s = time.perf_counter()
        rates = self._rates(epoch)
        values, wait_s = self._take_steps(epoch, rates, on_batch)
        seconds = time.perf_counter() - started_s
        mean_loss = float(np.mean(values))
        if not math.isfinite(mean_loss):
            raise TrainError(
                f"the loss of the series head is {mean_loss} in epoch {epoch}; lower "
                f"series.lr (now {self.config.lr}), or look for features that are not "
                "finite"
            )
        before = self.history[-1]["train_loss_smooth"] if self.history else 0.0
        return {
            "epoch": epoch,
            "phase": 0,
            "train_loss": mean_loss,
            "train_loss_smooth": moving_average(values, before, epoch * len(values)),
            "learning_rate": rates[-1],
            "slices_per_s": self.num_slices / seconds,
            "seconds": seconds,
            "wait_share": wait_s / seconds,
        }

    def _take_steps(
        self, epoch: int, rates: Sequence[float], on_batch: Callable[[int], None]
    ) -> tuple[list[float], float]:
        """Train on each batch; their losses, and the seconds that batches took."""
        config = self.config
        seeds = np.random.SeedSequence((config.seed, epoch))
        order = epoch_batches(
            len(self._batches.arrays), config.batch_size, seed=config.seed, epoch=epoch
        )
        self.head.train()
        losses, wait_s = [], 0.0
        with _seeded(self._device, int(seeds.generate_state(1, np.uint64)[0])):
            for series_B, lr in zip(order, rates, strict=True):
                asked_s = time.perf_counter()
                batch = self._batches.batch(series_B)
                wait_s += time.perf_counter() - asked_s
                losses.append(self._step(batch, lr))
                on_batch(sum(len(self._batches.sampled[s]) for s in series_B))
        return torch.stack(losses).tolist(), wait_s

    def _rates(self, epoch: int) -> list[float]:
        """The learning rate of each step of an epoch."""
        num_steps = -(-len(self._batches.arrays) // self.config.batch_size)
        schedule = Schedule(
            kind="warm-up-cosine",
            lr=self.config.lr,
            num_steps=self.num_epochs * num_steps,
            start=self.config.warm_up,
        )
        steps = range(epoch * num_steps, (epoch + 1) * num_steps)
        return [schedule.at(step)[0] for step in steps]

    @property
    def _device(self) -> torch.device:
        return next(self.head.parameters()).device

    def _step(self, batch: SeriesBatch, lr: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        logits = self.head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ)
        loss = series_loss(logits, batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.head.parameters(), MAX_GRADIENT)
        self._optimizer.step()
        return loss.detach()


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch in the block, and leave its random state as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check_labels(part: str, arrays: SeriesArrays) -> None:
    if not len(arrays) or np.isnan(arrays.judged_labels).all():
        raise TrainError(
            f"none of the {len(arrays):,} {part} series has a label; add labels, or "
            "choose other series"
        )


def fit_head(
    train: SeriesArrays,
    valid: SeriesArrays,
    config: SeriesConfig,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> FittedHead:
    """Train a head and keep its best epoch.

    Args:
        train: series that train.
        valid: series of other patients, which choose the epoch.
        config: how the head is built and trained.
        device: where to train.

    Raises:
        TrainError: nothing to train or to validate on has a label, or the loss is not
            finite.
    """
    return HeadTrainer(train, valid, config, device).fit()


def validate_head(head: SeriesHead, valid: SeriesArrays) -> dict[str, float]:
    """The figures of slice logits that `training.inference.valid_figures` returns.

    A series that alone has the label of a class counts as one more slice, with the
    highest logit of its slices.

    Args:
        head: left in evaluation mode.
        valid: some label must be known.
    """
    slices_NK, _ = predict_series(head, valid)
    return valid_figures(valid.judged(slices_NK), valid.judged_labels)


@torch.inference_mode()
def predict_series(head: SeriesHead, arrays: SeriesArrays) -> tuple[Floats, Floats]:
    """Logits of slices and series.

    Args:
        head: left in evaluation mode.
        arrays: labels are not used.

    Returns:
        Slices (N, K), NaN in rows of no series, and series (S, K); float64.
    """
    head.eval()
    device = next(head.parameters()).device
    batches = SeriesBatches(arrays, head.config, device)
    slices_NK = np.full(arrays.labels_NK.shape, np.nan)
    series_SK = np.full(arrays.series_labels_SK.shape, np.nan)
    batch_size = head.config.batch_size
    for start in range(0, len(arrays), batch_size):
        series_B = np.arange(start, min(start + batch_size, len(arrays)))
        batch = batches.batch(series_B)
        logits = head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ)
        series_SK[series_B] = logits.series_BK.double().cpu().numpy()
        slices_BZK = logits.slices_BZK.double().cpu().numpy()
        for s, logits_ZK in zip(series_B, slices_BZK, strict=True):
            rows_Z, sampled_M = arrays.rows[int(s)], batches.sampled[int(s)]
            slices_NK[rows_Z] = map_back(
                logits_ZK[: len(sampled_M)], sampled_M, len(rows_Z)
            )
    return slices_NK, series_SK
