"""The training loop: one epoch, one run.

1. Nothing in the loop waits for the device; losses are read an interval late.
2. What a run does is a function of its settings, its seed and the number of ranks:
   killed or stopped at any moment and resumed, it ends with the weights and the
   history of an undisturbed run (bit for bit on a CPU).
3. A loss that is not finite stops the run before its weights are saved.
4. All ranks stop, save and fail together; one of them writes.

Any `loading.batch.Loader` will do; this module knows nothing of DALI.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ichfast.errors import CheckpointError, InterruptionError, TrainError
from ichfast.loading.batch import Loader
from ichfast.system.terminal import progress
from ichfast.training.checkpoint import BEST, LAST, save_checkpoint, save_last
from ichfast.training.history import History, epochs_since_best
from ichfast.training.inference import validate
from ichfast.training.meters import READ_INTERVAL, LoaderWatch, LossTrace, WaitMeter
from ichfast.training.step import Stepper

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: the next batch to take."""

    epoch: int = 0
    """Counted over all phases, from 0."""

    iteration: int = 0
    """Batch of that epoch, from 0; the first of a step."""


class Trainer:
    """One run: a model on its way through the phases of its settings.

    Args:
        stepper: takes the steps.
        run_dir: where checkpoints go; exists.
        name_slices: turns store positions into names, for error messages.
        should_stop: asked after each step; True saves and ends the run.
    """

    def __init__(
        self,
        stepper: Stepper,
        *,
        run_dir: Path,
        name_slices: Callable[[Tensor], list[str]],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stepper = stepper
        self.config = stepper.config
        self.ranks = stepper.ranks
        self.phases = self.config.planned_phases()
        self.history: History = []
        self._run_dir = run_dir
        self._name_slices = name_slices
        self._should_stop = should_stop
        self._position = Position()
        self._losses = LossTrace(stepper.device)
        self._watch = LoaderWatch()
        self._trained_s, self._waited_s = 0.0, 0.0
        self._saved_at = time.monotonic()
        self._resumed: dict[str, Any] | None = None

    def fit(
        self,
        train_loader: Loader,
        valid_loader: Loader,
        *,
        before_epoch: Callable[[int], None] = lambda _: None,
        on_epoch: Callable[[History], None] = lambda _: None,
    ) -> History:
        """Train through all phases, from where the run stands.

        Args:
            train_loader: gives full batches, shuffled; this rank's part.
            valid_loader: gives this rank's part of the validation fold; together
                the ranks give every slice once.
            before_epoch: called with the number of each epoch before it is trained,
                or trained on.
            on_epoch: called with the history after each epoch.

        Returns:
            One row an epoch: epoch, phase, train_loss, valid_loss,
            valid_weighted_log_loss, valid_accuracy, learning_rate, slices_per_s,
            seconds, wait_share. Losses and the rate are of all ranks together.

        Raises:
            TrainError: a loss is not finite, or an epoch has no whole step.
            InterruptionError: `should_stop` said so; the checkpoint holds the place.
        """
        if self._resumed is None:
            torch.manual_seed(self.config.seed + self.ranks.rank)
        num_steps = self.steps_per_epoch(train_loader)
        first_epoch = 0
        for index, phase in enumerate(self.phases):
            last_epoch = first_epoch + phase.epochs
            if self._position.epoch < last_epoch and not self._has_stalled():
                self._start_phase(index, first_epoch, num_steps)
            while self._position.epoch < last_epoch and not self._has_stalled():
                before_epoch(self._position.epoch)
                row = self.train_epoch(train_loader, first_epoch)
                row |= {"phase": index, **validate(self.stepper, valid_loader)}
                self.history.append(row)
                self._finish_epoch(on_epoch)
            first_epoch = last_epoch
        if self._has_stalled():
            logger.info(
                "no better %s for %s epoch(s): the run ends after %d of %d epochs",
                self.config.best_by,
                self.config.patience,
                len(self.history),
                first_epoch,
            )
        return self.history

    def steps_per_epoch(self, loader: Loader) -> int:
        """Steps in an epoch; batches left over wait for another one.

        Raises:
            TrainError: there are less batches than one step takes.
        """
        num_steps = len(loader) // self.config.accumulate
        if num_steps == 0:
            raise TrainError(
                f"{len(loader)} batch(es) an epoch do not make one step of "
                f"{self.config.accumulate}; lower --set train.accumulate=N"
            )
        return num_steps

    def _has_stalled(self) -> bool:
        patience, by = self.config.patience, self.config.best_by
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
            states = resumed["rng"][self.ranks.rank]
            torch.set_rng_state(states["cpu"])
            if self.stepper.device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"], self.stepper.device)
            self._resumed = None

    def train_epoch(self, loader: Loader, first_epoch: int) -> dict[str, Any]:
        """Train one epoch, or what is left of it.

        Args:
            loader: of this rank's part.
            first_epoch: of the phase.

        Returns:
            What a row of the history says about training.
        """
        epoch, first = self._position.epoch, self._position.iteration
        stepper, num_steps = self.stepper, self.steps_per_epoch(loader)
        meter, began, num_slices = WaitMeter(stepper.device), time.perf_counter(), 0
        stepper.model.train()
        batches = loader.epoch(epoch, first_batch=first)
        with progress(self._label(epoch), loader.num_slices, "slice") as bar:
            for iteration in range(first, num_steps * self.config.accumulate):
                with stepper.spans.part("wait"), meter.waiting():
                    batch = next(batches)
                loss = stepper.add(batch, epoch=epoch, iteration=iteration)
                self._losses.add(loss, batch.indices_B)
                num_slices += len(batch)
                self._note_wait(meter, time.perf_counter() - began)
                if stepper.completes_step(iteration):
                    step = (epoch - first_epoch) * num_steps
                    stepper.update(step + iteration // self.config.accumulate)
                    self._follow_step(Position(epoch, iteration + 1))
                if iteration % READ_INTERVAL == 0:
                    bar.set_postfix_str(self._remark(meter, began), refresh=False)
                bar.update(len(batch))
        self._raise_bad_losses(self._losses.read_all())
        seconds = time.perf_counter() - began
        train_loss = float(np.mean(self.ranks.gather(self._losses.mean())))
        self._losses.clear()
        self._position = Position(epoch + 1)
        self._trained_s += seconds
        self._waited_s += meter.seconds()
        return {
            "epoch": epoch,
            "train_loss": train_loss,
            "learning_rate": stepper.learning_rate,
            "slices_per_s": num_slices * self.ranks.world_size / seconds,
            "seconds": seconds,
            "wait_share": meter.seconds() / seconds,
        }

    def _label(self, epoch: int) -> str:
        """What the progress display says; nothing on ranks that do not write."""
        total = sum(phase.epochs for phase in self.phases)
        return f"epoch {epoch + 1}/{total}" if self.ranks.writes else ""

    def _remark(self, meter: WaitMeter, began: float) -> str:
        share = meter.seconds() / max(time.perf_counter() - began, 1e-9)
        waiting = f"{100 * share:.0f} % waiting for data"
        if not self._losses.values:  # none has arrived yet
            return waiting
        return f"loss {self._losses.mean():.4f}, {waiting}"

    def _note_wait(self, meter: WaitMeter, elapsed_s: float) -> None:
        self._watch.note(
            elapsed_s=self._trained_s + elapsed_s,
            waited_s=self._waited_s + meter.seconds(),
        )

    def _follow_step(self, position: Position) -> None:
        """Do what is due between two steps, the same on all ranks."""
        bad_B = self._losses.read_late() if self._losses.due else None
        minutes = (time.monotonic() - self._saved_at) / 60
        is_bad, must_stop, must_save = self.ranks.agree(
            [
                bad_B is not None,
                self._should_stop(),
                minutes >= self.config.checkpoint_minutes,
            ]
        )
        if is_bad:
            self._raise_not_finite(bad_B)
        if must_stop or must_save:
            self._raise_bad_losses(self._losses.read_all())
            self._position = position
            self._save_last(self._state())
        if must_stop:
            raise InterruptionError(
                f"stopped in epoch {position.epoch + 1} after batch "
                f"{position.iteration}; {self._run_dir / LAST} holds the place"
            )

    def _raise_bad_losses(self, bad_B: Tensor | None) -> None:
        (is_bad,) = self.ranks.agree([bad_B is not None])
        if is_bad:
            self._raise_not_finite(bad_B)

    def _raise_not_finite(self, bad_B: Tensor | None) -> None:
        names = self._name_slices(bad_B) if bad_B is not None else []
        where = ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")
        raise TrainError(
            f"the loss is not finite in epoch {self._position.epoch + 1}; the batch "
            f"held {where or 'slices of another rank'}; lower the learning rate "
            f"(--set train.phases.0.lr=...) and start again from {BEST}"
        )

    def _finish_epoch(self, on_epoch: Callable[[History], None]) -> None:
        by = self.config.best_by
        if not np.isfinite(self.history[-1][by]):
            raise TrainError(
                f"the validation loss of epoch {self._position.epoch} is not finite; "
                f"{self._run_dir} keeps the checkpoint before; lower the learning rate"
            )
        # First, for an epoch whose checkpoint is there is not reported again.
        on_epoch(self.history)
        state = self._state()
        if epochs_since_best(self.history, by) == 0 and self.ranks.writes:
            save_checkpoint(self._run_dir / BEST, state)
        self._save_last(state)

    def _save_last(self, state: dict[str, Any]) -> None:
        if self.ranks.writes:
            save_last(self._run_dir, state)
        self._saved_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        """All that `restore` needs, of every rank."""
        device = self.stepper.device
        on_cuda = device.type == "cuda"
        return self.stepper.state() | {
            "rng": self.ranks.gather(
                {
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state(device) if on_cuda else None,
                }
            ),
            "epoch": self._position.epoch,
            "iteration": self._position.iteration,
            "losses": self.ranks.gather(self._losses.values),
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go to where a checkpoint stands; `fit` continues from there.

        Raises:
            CheckpointError: it was written by another number of ranks.
        """
        num_ranks = len(state["rng"])
        if num_ranks != self.ranks.world_size:
            raise CheckpointError(
                f"{self._run_dir} was trained by {num_ranks} rank(s), now there are "
                f"{self.ranks.world_size}; resume with as many, or start a new run "
                "from its weights with --weights"
            )
        self.stepper.restore(state)
        self._losses.values = list(state["losses"][self.ranks.rank])
        self._position = Position(state["epoch"], state["iteration"])
        self.history = list(state["history"])
        self._resumed = state
