"""The training loop: one run of phases, epoch by epoch.

Promises:

1. Nothing in the loop waits for the device, apart from what `training.step` names;
   losses are read an interval late.
2. A run is a function of its settings, its seed and the number of ranks. Killed or
   stopped at any moment and resumed, it ends with the weights and the history of an
   undisturbed run (bit for bit on a CPU).
3. A loss that is not finite stops the run before its weights are saved.
4. All ranks stop, save and fail together; one of them writes.

The loop takes any `loading.batch.Loader`; it does not depend on DALI.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ichfast.errors import CheckpointError, InterruptionError, TrainError
from ichfast.loading.bags import NO_BAGS, Bags
from ichfast.loading.batch import Loader
from ichfast.system.terminal import progress
from ichfast.training.checkpoint import BEST, LAST, Checkpointer, restoring
from ichfast.training.history import History, epochs_since_best
from ichfast.training.inference import validate
from ichfast.training.meters import (
    READ_INTERVAL,
    EpochTimer,
    LoaderWatch,
    LossTrace,
    moving_average,
)
from ichfast.training.step import Stepper

logger = logging.getLogger(__name__)

MAX_NAMED_SLICES = 8
"""Slices of a bad batch that an error names."""


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a run: the next batch to take."""

    epoch: int = 0
    """Counted over all phases, from 0."""

    iteration: int = 0
    """Batch of that epoch, from 0; the first of a step."""


class Trainer:
    """Runs a model through the phases of its settings.

    Args:
        stepper: takes the steps.
        run_dir: where checkpoints go; exists.
        name_slices: turns store positions into names, for error messages.
        saved_with: further fields of each checkpoint, plain values.
        should_stop: called after each step; True saves and ends the run.
    """

    def __init__(
        self,
        stepper: Stepper,
        *,
        run_dir: Path,
        name_slices: Callable[[Tensor], list[str]],
        saved_with: Mapping[str, Any],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stepper = stepper
        self.phases = stepper.config.planned_phases()
        self.history: History = []
        self._name_slices = name_slices
        self._saved_with = saved_with
        self._should_stop = should_stop
        self._checkpoints = Checkpointer(
            run_dir,
            writes=stepper.ranks.writes,
            minutes=stepper.config.checkpoint_minutes,
        )
        self._position = Position()
        self._losses = LossTrace(stepper.device)
        self._watch = LoaderWatch()
        self._resumed: dict[str, Any] | None = None

    @property
    def num_epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def is_finished(self) -> bool:
        """Whether `fit` would train no epoch."""
        return not self._trains_before(self.num_epochs)

    def fit(
        self,
        train_loader: Loader,
        valid_loader: Loader,
        *,
        valid_bags: Bags = NO_BAGS,
        before_epoch: Callable[[int], None] = lambda _: None,
        on_epoch: Callable[[History], None] = lambda _: None,
    ) -> History:
        """Train through all phases, from the run's position.

        Args:
            train_loader: gives full batches, shuffled; this rank's part.
            valid_loader: gives this rank's part of the validation fold; together
                the ranks give every slice once.
            valid_bags: bags of the validation fold.
            before_epoch: called with the number of an epoch, from 0, before it is
                trained or continued.
            on_epoch: called with the history after each epoch.

        Returns:
            One row per epoch, with the columns that `training.history` names. Losses
            and the rate are those of all ranks together.

        Raises:
            CheckpointError: a checkpoint cannot be written.
            InterruptionError: `should_stop` returned True; the run can be resumed.
            TrainError: a loss is not finite, or an epoch has no whole step.
        """
        if self._resumed is None:
            torch.manual_seed(self.stepper.config.seed + self.stepper.ranks.rank)
        num_steps = self.steps_per_epoch(train_loader)
        first_epoch = 0
        for index, phase in enumerate(self.phases):
            last_epoch = first_epoch + phase.epochs
            if self._trains_before(last_epoch):
                self._start_phase(index, first_epoch, num_steps)
            while self._trains_before(last_epoch):
                before_epoch(self._position.epoch)
                row = self.train_epoch(train_loader, first_epoch)
                figures = validate(self.stepper, valid_loader, valid_bags)
                row |= {"phase": index, **figures}
                self.history.append(row)
                self._finish_epoch(on_epoch)
            first_epoch = last_epoch
        if self._has_stalled():
            logger.info(
                "no better %s for %s epoch(s): the run ends after %d of %d epochs",
                self.stepper.config.best_by,
                self.stepper.config.patience,
                len(self.history),
                self.num_epochs,
            )
        return self.history

    def steps_per_epoch(self, loader: Loader) -> int:
        """Steps in an epoch; the batches left over are not trained on.

        Raises:
            TrainError: an epoch has fewer batches than a step takes.
        """
        accumulate = self.stepper.config.accumulate
        num_steps = len(loader) // accumulate
        if num_steps == 0:
            raise TrainError(
                f"{len(loader)} batch(es) an epoch do not make one step of "
                f"{accumulate}; lower --set train.accumulate=N"
            )
        return num_steps

    def _trains_before(self, last_epoch: int) -> bool:
        return self._position.epoch < last_epoch and not self._has_stalled()

    def _has_stalled(self) -> bool:
        patience, by = self.stepper.config.patience, self.stepper.config.best_by
        return patience is not None and epochs_since_best(self.history, by) >= patience

    def _start_phase(self, index: int, first_epoch: int, num_steps: int) -> None:
        phase, resumed = self.phases[index], self._resumed
        is_begun = self._position != Position(first_epoch)
        self.stepper.start_phase(
            phase,
            phase.epochs * num_steps,
            resumed["optimizer"] if resumed and is_begun else None,
        )
        if resumed:
            states = resumed["rng"][self.stepper.ranks.rank]
            with restoring():
                torch.set_rng_state(states["cpu"])
                if self.stepper.device.type == "cuda":
                    torch.cuda.set_rng_state(states["cuda"], self.stepper.device)
            self._resumed = None

    def train_epoch(self, loader: Loader, first_epoch: int) -> dict[str, Any]:
        """Train one epoch, or what is left of it.

        Args:
            loader: gives this rank's part.
            first_epoch: first epoch of the phase, counted over all phases.

        Returns:
            The columns of a history row that are about training.

        Raises:
            CheckpointError: a checkpoint cannot be written.
            InterruptionError: `should_stop` returned True.
            TrainError: a loss is not finite, or an epoch has no whole step.
        """
        epoch, first = self._position.epoch, self._position.iteration
        stepper, num_steps = self.stepper, self.steps_per_epoch(loader)
        accumulate, ranks = stepper.config.accumulate, stepper.ranks
        stepper.model.train()
        batches = loader.epoch(epoch, first_batch=first)
        timer = EpochTimer(stepper.device, self._watch)
        label = f"epoch {epoch + 1}/{self.num_epochs}" if ranks.writes else ""
        with progress(label, loader.num_slices, "slice") as bar:
            for iteration in range(first, num_steps * accumulate):
                with stepper.spans.part("wait"), timer.waiting():
                    batch = next(batches)
                loss = stepper.add(batch, epoch=epoch, iteration=iteration)
                self._losses.add(loss, batch.indices_B)
                timer.add(batch.num_slices)
                if stepper.completes_step(iteration):
                    step = (epoch - first_epoch) * num_steps + iteration // accumulate
                    stepper.update(step)
                    self._finish_step(Position(epoch, iteration + 1))
                if iteration % READ_INTERVAL == 0:
                    bar.set_postfix_str(self._remark(timer), refresh=False)
                bar.update(batch.num_slices)
        self._check_losses()
        times = timer.finish(ranks.world_size)
        losses = self._mean_losses(self.history[first_epoch:], num_steps)
        self._losses.clear()
        self._position = Position(epoch + 1)
        return {
            "epoch": epoch,
            **losses,
            "learning_rate": stepper.learning_rate,
            **times,
        }

    def _mean_losses(self, before: History, num_steps: int) -> dict[str, float]:
        """The epoch's mean loss and the phase's moving average, of all ranks.

        Args:
            before: rows of the phase's epochs before this one.
            num_steps: steps in each.
        """
        last = before[-1]["train_loss_smooth"] if before else 0.0
        batches = np.reshape(self._losses.values, (-1, self.stepper.config.accumulate))
        steps = batches.mean(axis=1).tolist()
        smooth = moving_average(steps, last, len(before) * num_steps)
        means = self._losses.mean(), smooth
        names = "train_loss", "train_loss_smooth"
        gathered = np.mean(self.stepper.ranks.gather(means), axis=0).tolist()
        return dict(zip(names, gathered, strict=True))

    def _remark(self, timer: EpochTimer) -> str:
        waiting = f"{100 * timer.wait_share():.0f} % waiting for data"
        if not self._losses.values:  # none is read yet
            return waiting
        return f"loss {self._losses.mean():.4f}, {waiting}"

    def _finish_step(self, position: Position) -> None:
        """Check, stop and save where due, on all ranks together."""
        bad_B = self._losses.read_late() if self._losses.due else None
        is_bad, must_stop, must_save = self.stepper.ranks.agree(
            [bad_B is not None, self._should_stop(), self._checkpoints.due]
        )
        if is_bad:
            raise self._not_finite(bad_B)
        if must_stop or must_save:
            self._check_losses()
            self._position = position
            self._checkpoints.save_last(self._state())
        if must_stop:
            raise InterruptionError(
                f"stopped in epoch {position.epoch + 1} after batch "
                f"{position.iteration}; {self._checkpoints.run_dir / LAST} holds the "
                "place"
            )

    def _check_losses(self) -> None:
        """Read all losses; raise if one is not finite on any rank."""
        bad_B = self._losses.read_all()
        (is_bad,) = self.stepper.ranks.agree([bad_B is not None])
        if is_bad:
            raise self._not_finite(bad_B)

    def _not_finite(self, bad_B: Tensor | None) -> TrainError:
        names = self._name_slices(bad_B) if bad_B is not None else []
        where = ", ".join(names[:MAX_NAMED_SLICES])
        where += " ..." if len(names) > MAX_NAMED_SLICES else ""
        return TrainError(
            f"the loss is not finite in epoch {self._position.epoch + 1}; the batch "
            f"held {where or 'slices of another rank'}; {self._how_to_start_again()}"
        )

    def _how_to_start_again(self) -> str:
        best = self._checkpoints.run_dir / BEST
        weights = f", from the best epoch with --weights {best}"
        return (
            "lower the learning rate (--set train.phases.0.lr=...) and start again in "
            f"another folder{weights if best.is_file() else ''}"
        )

    def _finish_epoch(self, on_epoch: Callable[[History], None]) -> None:
        by = self.stepper.config.best_by
        if not np.isfinite(self.history[-1][by]):
            raise TrainError(
                f"the validation loss of epoch {self._position.epoch} is not finite; "
                f"{self._how_to_start_again()}"
            )
        # Reported before it is saved: once saved, an epoch is not trained again.
        on_epoch(self.history)
        is_best = epochs_since_best(self.history, by) == 0
        self._checkpoints.save_epoch(self._state(), is_best=is_best)

    def _state(self) -> dict[str, Any]:
        """All that `restore` needs, of every rank."""
        device, ranks = self.stepper.device, self.stepper.ranks
        on_cuda = device.type == "cuda"
        return self.stepper.state() | {
            "rng": ranks.gather(
                {
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state(device) if on_cuda else None,
                }
            ),
            "epoch": self._position.epoch,
            "iteration": self._position.iteration,
            "losses": ranks.gather(self._losses.values),
            "history": self.history,
            **self._saved_with,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint; `fit` continues from there.

        Args:
            state: as `checkpoint.load_last` returns it.

        Raises:
            CheckpointError: it was written by another number of ranks, or does not
                fit the model.
        """
        ranks, num_ranks = self.stepper.ranks, len(state["rng"])
        if num_ranks != ranks.world_size:
            raise CheckpointError(
                f"{self._checkpoints.run_dir} was trained by {num_ranks} rank(s), now "
                f"there are {ranks.world_size}; resume with as many, or start a new "
                "run from its weights with --weights"
            )
        with restoring():
            self.stepper.restore(state)
        self._losses.values = list(state["losses"][ranks.rank])
        self._position = Position(state["epoch"], state["iteration"])
        self.history = list(state["history"])
        self._resumed = state
        self._checkpoints.save_lost_best(state)
