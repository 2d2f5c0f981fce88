"""The training loop: one step, one epoch, one run.

1. One code path: number format, mixup, averaging and freezing are data.
2. Nothing in a step waits for the device; losses are read an interval late.
3. What a run does is a function of its settings and seed: stopping after any step
   and resuming gives the weights an undisturbed run has (bit for bit on a CPU).
4. A loss that is not finite stops the run before its weights are saved.

Any `batch.Loader` will do; this module knows nothing of DALI.

Shape letters: B slices of the batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ichfast.amp import Amp
from ichfast.batch import Batch, Loader
from ichfast.checkpoint import BEST, LAST, save_checkpoint
from ichfast.ema import Ema
from ichfast.errors import InterruptionError, RecipeError, TrainError
from ichfast.losses import LossTrace
from ichfast.metrics import accuracy, weighted_log_loss
from ichfast.mixup import mix_up
from ichfast.models import body_and_head
from ichfast.optim import decay_groups, make_optimizer
from ichfast.predict import predict_logits
from ichfast.progress import progress
from ichfast.schedules import Schedule

History = list[dict[str, Any]]
"""One row an epoch; see `Trainer.fit`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of epochs with an optimizer and a schedule of its own."""

    epochs: int
    """How many."""

    lr: float
    """Highest learning rate."""

    schedule: str = "flat-cosine"
    """``one-cycle``, ``flat-cosine`` or ``cosine``."""

    start: float = 0.7
    """Share of the steps after which the learning rate falls."""

    optimizer: str = "ranger"
    """``adam``, ``radam``, ``ranger`` or ``lamb``."""

    betas: tuple[float, float] = (0.95, 0.99)
    """Decay of the averages of the gradient and of its square."""

    eps: float = 1e-6
    """Added to the root of the second average."""

    weight_decay: float = 1e-2
    """Decoupled; batch norm and biases are spared."""

    freeze_body: bool = False
    """Train the head and batch norm only."""

    mixup_alpha: float = 0.0
    """Mixup's Beta(alpha, alpha), a draw a slice; 0 for none."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.lr > 0 or self.mixup_alpha < 0:
            raise RecipeError(
                "a phase needs 1 epoch or more, a learning rate above 0 and a mixup "
                f"alpha of 0 or more; got {self.epochs}, {self.lr}, {self.mixup_alpha}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained."""

    phases: tuple[Phase, ...]
    """One after another."""

    epochs: int | None = None
    """Epochs altogether; the phases shrink or grow in proportion. None: as given."""

    any_weight: float = 1.0
    """Weight of the class `any` in the loss; the competition's metric has 2."""

    ema_decay: float = 0.0
    """Decay of the average of the weights that validates; 0 for no average."""

    amp: str = "auto"
    """``auto``, ``bf16``, ``fp16`` or ``fp32``."""

    seed: int = 42
    """Decides weights, order, augmentation, dropout and mixup."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise RecipeError(f"train.epochs must be at least 1, got {self.epochs}")
        if not 0.0 <= self.ema_decay < 1.0 or not self.any_weight > 0.0:
            raise RecipeError(
                "train.ema_decay is in [0, 1) and train.any_weight above 0, "
                f"got {self.ema_decay} and {self.any_weight}"
            )

    def planned_phases(self) -> tuple[Phase, ...]:
        """The phases with the epochs they will really have; empty ones dropped."""
        if self.epochs is None:
            return self.phases
        ends = np.cumsum([phase.epochs for phase in self.phases])
        scaled_ends = np.rint(ends * self.epochs / ends[-1]).astype(int)
        epochs = np.diff(scaled_ends, prepend=0)
        return tuple(
            replace(phase, epochs=int(count))
            for phase, count in zip(self.phases, epochs, strict=True)
            if count
        )


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: the next step to take."""

    epoch: int = 0
    """Counted over all phases, from 0."""

    iteration: int = 0
    """Batch of that epoch, from 0."""


class Trainer:
    """One run: a model on its way through the phases of its settings.

    Args:
        model: on its device.
        config: how to train.
        amp: number format.
        run_dir: where checkpoints go; exists.
        name_slices: turns store positions into names, for error messages.
        should_stop: asked after each step; True saves and ends the run.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        amp: Amp,
        run_dir: Path,
        name_slices: Callable[[Tensor], list[str]],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model
        self.config = config
        self.phases = config.planned_phases()
        self.amp = amp
        self.run_dir = run_dir
        self.history: History = []
        self._name_slices = name_slices
        self._should_stop = should_stop
        self._device = next(model.parameters()).device
        self._ema = Ema(model, decay=config.ema_decay) if config.ema_decay else None
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=amp.needs_scaler)
        class_weights = torch.tensor([config.any_weight, 1.0, 1.0, 1.0, 1.0, 1.0])
        self._loss = nn.BCEWithLogitsLoss(
            weight=(class_weights / class_weights.mean()).to(self._device)
        )
        self._position = Position()
        self._losses = LossTrace(self._device)
        self._resumed: dict[str, Any] = {}

    @property
    def averaged_model(self) -> nn.Module:
        """The model that validates: the average of the weights, if there is one."""
        return self._ema.model if self._ema else self.model

    def fit(
        self,
        train_loader: Loader,
        valid_loader: Loader,
        *,
        on_epoch: Callable[[History], None] = lambda _: None,
    ) -> History:
        """Train through all phases, from where the run stands.

        Args:
            train_loader: gives full batches, shuffled.
            valid_loader: gives every slice of the validation fold once.
            on_epoch: called with the history after each epoch.

        Returns:
            One row an epoch: epoch, phase, train_loss, valid_loss,
            valid_weighted_log_loss, valid_accuracy, learning_rate, slices_per_s,
            seconds, wait_share.

        Raises:
            TrainError: a loss is not finite.
            InterruptionError: `should_stop` said so; the checkpoint holds the place.
        """
        if self._position == Position():
            torch.manual_seed(self.config.seed)
        first_epoch = 0
        for index, phase in enumerate(self.phases):
            last_epoch = first_epoch + phase.epochs
            if self._position.epoch < last_epoch:
                steps_done = (self._position.epoch - first_epoch) * len(
                    train_loader
                ) + self._position.iteration
                self._start_phase(phase, len(train_loader), steps_done)
            while self._position.epoch < last_epoch:
                row = self._run_epoch(train_loader, first_epoch)
                row |= {"phase": index, **self._validate(valid_loader)}
                self.history.append(row)
                self._save_epoch()
                on_epoch(self.history)
            first_epoch = last_epoch
        return self.history

    def _start_phase(self, phase: Phase, num_batches: int, steps_done: int) -> None:
        body, _ = body_and_head(self.model)
        for parameter in body:
            parameter.requires_grad_(not phase.freeze_body)
        self._phase = phase
        self._optimizer = make_optimizer(
            phase.optimizer,
            decay_groups(self.model),
            lr=phase.lr,
            betas=phase.betas,
            eps=phase.eps,
            weight_decay=phase.weight_decay,
        )
        self._schedule = Schedule(
            kind=phase.schedule,
            lr=phase.lr,
            num_steps=phase.epochs * num_batches,
            start=phase.start,
        )
        if steps_done:
            self._optimizer.load_state_dict(self._resumed["optimizer"])
        if self._resumed:
            torch.set_rng_state(self._resumed["rng_cpu"])
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(self._resumed["rng_cuda"], self._device)
            self._resumed = {}

    def _run_epoch(self, loader: Loader, first_epoch: int) -> dict[str, Any]:
        """Train one epoch, or what is left of it."""
        epoch, iteration = self._position.epoch, self._position.iteration
        started, waited_s, num_slices = time.perf_counter(), 0.0, 0
        total_epochs = sum(phase.epochs for phase in self.phases)
        self.model.train()
        with progress(
            f"epoch {epoch + 1}/{total_epochs}", loader.num_slices, "slice"
        ) as bar:
            for batch, wait_s in _timed(loader.epoch(epoch, first_batch=iteration)):
                step = (epoch - first_epoch) * len(loader) + iteration
                self._schedule.apply(self._optimizer, step)
                self._losses.add(self.step(batch, step), batch.indices_B)
                iteration += 1
                waited_s += wait_s
                num_slices += len(batch)
                if self._losses.due:
                    self._check(self._losses.read_late())
                if self._losses.values:
                    bar.set_postfix_str(
                        f"loss {self._losses.mean():.4f}", refresh=False
                    )
                bar.update(len(batch))
                if self._should_stop():
                    self._stop_at(Position(epoch, iteration))
        self._check(self._losses.read_all())
        seconds = time.perf_counter() - started
        train_loss = self._losses.mean()
        self._losses.clear()
        self._position = Position(epoch + 1)
        return {
            "epoch": epoch,
            "train_loss": train_loss,
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "slices_per_s": num_slices / seconds,
            "seconds": seconds,
            "wait_share": waited_s / seconds,
        }

    def step(self, batch: Batch, step: int) -> Tensor:
        """Take one optimizer step.

        Args:
            batch: on the model's device.
            step: of the phase, from 0; seeds the mixup.

        Returns:
            The loss, a float32 scalar on the device, detached.
        """
        images_BCHW, targets_BK = batch.images_BCHW.to(self.amp.dtype), batch.targets_BK
        if self._phase.mixup_alpha:
            images_BCHW, targets_BK = mix_up(
                images_BCHW,
                targets_BK,
                alpha=self._phase.mixup_alpha,
                seed=(self.config.seed, self._position.epoch, step),
            )
        with self.amp.autocast():
            loss: Tensor = self._loss(self.model(images_BCHW), targets_BK)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        if self._ema:
            self._ema.update()
        return loss.detach()

    def _validate(self, loader: Loader) -> dict[str, float]:
        _, logits_NK, targets_NK = predict_logits(
            self.averaged_model, loader, self.amp, label="  validate"
        )
        logits_NK, targets_NK = logits_NK.double(), targets_NK.double()
        valid_loss = nn.functional.binary_cross_entropy_with_logits(
            logits_NK, targets_NK
        )
        probs_NK, labels_NK = logits_NK.sigmoid().numpy(), targets_NK.numpy()
        return {
            "valid_loss": valid_loss.item(),
            "valid_weighted_log_loss": weighted_log_loss(probs_NK, labels_NK),
            "valid_accuracy": accuracy(probs_NK, labels_NK),
        }

    def _check(self, bad_B: Tensor | None) -> None:
        if bad_B is None:
            return
        names = self._name_slices(bad_B)
        raise TrainError(
            f"the loss is not finite in epoch {self._position.epoch + 1}; the batch "
            f"held {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}; lower the "
            f"learning rate (--set train.phases.0.lr=...) and start again from {BEST}"
        )

    def _stop_at(self, position: Position) -> None:
        self._check(self._losses.read_all())
        self._position = position
        save_checkpoint(self.run_dir / LAST, self._state())
        raise InterruptionError(
            f"stopped in epoch {position.epoch + 1} after batch {position.iteration}; "
            f"{self.run_dir / LAST} holds the place, continue with --resume"
        )

    def _save_epoch(self) -> None:
        if not np.isfinite(self.history[-1]["valid_loss"]):
            raise TrainError(
                f"the validation loss of epoch {self._position.epoch} is not finite; "
                f"{self.run_dir} keeps the checkpoint before; lower the learning rate"
            )
        state = self._state()
        if self.history[-1]["valid_loss"] <= min(
            row["valid_loss"] for row in self.history
        ):
            save_checkpoint(self.run_dir / BEST, state)
        save_checkpoint(self.run_dir / LAST, state)

    def _state(self) -> dict[str, Any]:
        """All that `restore` needs; weights for others are under ``model``."""
        on_cuda = self._device.type == "cuda"
        return {
            "model": self.averaged_model.state_dict(),
            "trained": self.model.state_dict() if self._ema else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self._device) if on_cuda else None,
            "epoch": self._position.epoch,
            "iteration": self._position.iteration,
            "losses": self._losses.values,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint stands; `fit` continues from there."""
        self.model.load_state_dict(state["trained"] if self._ema else state["model"])
        if self._ema:
            self._ema.load_state_dict(state["model"])
        self._scaler.load_state_dict(state["scaler"])
        self._losses.values = list(state["losses"])
        self._position = Position(state["epoch"], state["iteration"])
        self.history = list(state["history"])
        self._resumed = state


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that were spent waiting for it."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked
