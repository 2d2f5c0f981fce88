"""Trains the series head on arrays, and predicts with it.

Promises:

1. Head and history are functions of arrays, settings and seed: the same bits each time
   on the same machine. torch's own random state is left as it was. Each epoch has a
   seed of its own, so it depends on the epochs before through weights and optimizer
   only.
2. The head that is returned is that of the best epoch: the one with the lowest weighted
   log loss on the validation series.

Shape letters: N slices, S series, K classes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ichfast.errors import TrainError
from ichfast.evaluation.metrics import weighted_log_loss
from ichfast.series.batches import (
    SeriesArrays,
    SeriesBatches,
    epoch_batches,
    map_back,
)
from ichfast.series.config import SeriesConfig
from ichfast.series.head import SeriesHead
from ichfast.series.loss import series_loss
from ichfast.training.optimizers import decay_groups, make_optimizer

Floats = npt.NDArray[np.float64]

MAX_GRADIENT = 1.0
"""Gradients of a larger norm are scaled down to it; those of a GRU can be large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedHead:
    """A trained head and how it was reached."""

    head: SeriesHead
    """In evaluation mode."""

    history: list[dict[str, float]]
    """Of each epoch ``train_loss`` and ``valid_weighted_log_loss``."""

    best_epoch: int
    """Index in `history` of the epoch whose weights the head has."""


class HeadTrainer:
    """Trains a head epoch by epoch.

    Args:
        train: series that train.
        config: how the head is built and trained.
        device: where to train.
    """

    def __init__(
        self, train: SeriesArrays, config: SeriesConfig, device: torch.device
    ) -> None:
        self.config = config
        self.num_epochs = config.num_epochs(len(train))
        self._batches = SeriesBatches(train, config, device)
        torch.manual_seed(config.seed)
        self.head = SeriesHead(train.features_ND.shape[1], config).to(device)
        self._optimizer = make_optimizer(
            "adam",
            decay_groups(self.head),
            lr=config.lr,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=config.weight_decay,
        )

    def train_epoch(self, epoch: int) -> float:
        """Train one epoch, and return its mean loss.

        Args:
            epoch: from 0.

        Raises:
            TrainError: the loss is not finite.
        """
        config, num_series = self.config, len(self._batches.arrays)
        seeds = np.random.SeedSequence((config.seed, epoch))
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        self.head.train()
        order = epoch_batches(
            num_series, config.batch_size, seed=config.seed, epoch=epoch
        )
        losses = []
        for number, series_B in enumerate(order):
            lr = learning_rate(
                epoch * len(order) + number,
                self.num_epochs * len(order),
                peak=config.lr,
                warm_up=config.warm_up,
            )
            losses.append(self._step(series_B, lr))
        mean_loss = float(torch.stack(losses).mean())
        if not math.isfinite(mean_loss):
            raise TrainError(
                f"the loss of the series head is {mean_loss} in epoch {epoch}; lower "
                f"series.lr (now {config.lr}), or look for features that are not finite"
            )
        return mean_loss

    def _step(self, series_B: npt.NDArray[np.int64], lr: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        batch = self._batches.batch(series_B)
        logits = self.head(batch.features_BZD, batch.is_slice_BZ, batch.position_BZ)
        loss = series_loss(logits, batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.head.parameters(), MAX_GRADIENT)
        self._optimizer.step()
        return loss.detach()


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
    for name, arrays in (("training", train), ("validation", valid)):
        if np.isnan(arrays.labels_NK).all() and np.isnan(arrays.series_labels_SK).all():
            raise TrainError(
                f"none of the {len(arrays):,} {name} series has a label; add labels, "
                "or choose other series"
            )
    history: list[dict[str, float]] = []
    best_loss, best_epoch, best_weights = math.inf, 0, {}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer = HeadTrainer(train, config, device)
        for epoch in range(trainer.num_epochs):
            train_loss = trainer.train_epoch(epoch)
            valid_loss = validate_head(trainer.head, valid)
            history.append(
                {"train_loss": train_loss, "valid_weighted_log_loss": valid_loss}
            )
            if valid_loss < best_loss:
                best_loss, best_epoch = valid_loss, epoch
                best_weights = copy.deepcopy(trainer.head.state_dict())
    trainer.head.load_state_dict(best_weights)
    return FittedHead(head=trainer.head.eval(), history=history, best_epoch=best_epoch)


def learning_rate(step: int, num_steps: int, *, peak: float, warm_up: float) -> float:
    """Rise linearly to the peak, then fall along a cosine.

    Args:
        step: from 0.
        num_steps: steps of the run.
        peak: highest learning rate.
        warm_up: share of the steps that rise, in [0, 1).
    """
    num_rising = int(num_steps * warm_up)
    if step < num_rising:
        return peak * (step + 1) / (num_rising + 1)
    fallen = (step - num_rising) / (num_steps - num_rising)
    return peak * (1.0 + math.cos(math.pi * fallen)) / 2.0


def validate_head(head: SeriesHead, valid: SeriesArrays) -> float:
    """Weighted log loss of slice logits.

    A series that alone has the label of a class counts as one more slice, with the
    highest logit of its slices.

    Args:
        head: left in evaluation mode.
        valid: some label must be known.
    """
    slices_NK, _ = predict_series(head, valid)
    highest_SK = np.array([slices_NK[rows].max(axis=0) for rows in valid.rows])
    rows_N = np.concatenate(valid.rows)
    logits = np.concatenate([slices_NK[rows_N], highest_SK])
    labels = np.concatenate([valid.labels_NK[rows_N], valid.bag_labels_SK])
    probs = torch.from_numpy(logits).sigmoid().numpy()
    return weighted_log_loss(probs, labels.astype(np.float64))


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
