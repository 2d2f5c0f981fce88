"""One optimizer step: forward, backward, update.

Promises:

1. There is one code path: number format, mixup, averaging, freezing, accumulation,
   ranks and compilation are data.
2. Nothing in a step waits for the device, with these exceptions:
   a. batch norm that is synchronized between GPUs waits in each layer
      (`TrainConfig.sync_batch_norm`);
   b. float16 waits once per step, to skip the update if a gradient overflowed; not
      with torch's Adam, which decides on the device;
   c. `DistributedDataParallel` times itself: ten of its first steps and then one in a
      hundred wait for the step before;
   d. the first steps of a size wait while kernels are timed, compiled or recorded;
   e. `Profile` waits in the steps that it times.
3. With `accumulate` k on w ranks, a step equals that of one batch k w times as
   large, up to rounding: gradients are means over all its slices. Only mixup,
   dropout and batch norm still see one batch; on GPUs batch norm can see the batches
   of all ranks (`TrainConfig.sync_batch_norm`).
4. Where labels are missing, a batch's loss is the mean over its known labels, and a
   step's gradient the mean over its k w batches. One mean over the known labels of all
   of them would need an exchange of counts before each backward pass. As the order is
   shuffled, which batch has fewer known labels is chance.

Shape letters: B slices of the batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ichfast.augment.mixup import mix_up
from ichfast.errors import RecipeError, first_line
from ichfast.loading.batch import Batch
from ichfast.models.build import body_and_head
from ichfast.models.precision import Amp
from ichfast.system.ranks import Ranks
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.ema import Ema
from ichfast.training.loss import known_loss, with_bags
from ichfast.training.optimizers import (
    decay_groups,
    make_optimizer,
    restore_optimizer,
)
from ichfast.training.profiler import Spans
from ichfast.training.schedules import Schedule

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K)."""

_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
"""Ranks share buffers before validation only. torch has renamed this option of DDP;
the second name is the older one."""


class Network:
    """A model as a step runs it: compiled, and exchanging gradients between ranks.

    Its parameters must require gradients as the phase wants them: only those that
    train are exchanged.

    Args:
        model: on its device; shares its weights with the network.
        config: `compile` and `cuda_graphs` decide.
        ranks: the processes that train together.

    Raises:
        RecipeError: CUDA graphs are wanted without a GPU.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, ranks: Ranks) -> None:
        device = next(model.parameters()).device
        self.forward: Forward = model
        self._cuda_graphs = config.cuda_graphs
        self._exchange: DistributedDataParallel | None = None
        if ranks.world_size > 1:
            self.forward = self._exchange = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,
            )
        if config.compile or config.cuda_graphs:
            self.forward = compile_forward(
                self._exchange or model, device, cuda_graphs=config.cuda_graphs
            )

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        if self._cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self.forward(images_BCHW)

    def exchanging(self, *, is_due: bool) -> AbstractContextManager[Any]:
        """A context in which gradients go to the other ranks, or wait if not due."""
        if self._exchange is None or is_due:
            return nullcontext()
        return self._exchange.no_sync()


@dataclass(frozen=True, kw_only=True, slots=True)
class _PhaseState:
    """What `Stepper.start_phase` makes anew for each phase."""

    mixup_alpha: float
    network: Network
    optimizer: Optimizer
    schedule: Schedule


class Stepper:
    """Takes the optimizer steps that train a model, and averages its weights.

    Args:
        model: on its device; any module that is a `models.build.Backbone`.
        config: how to train.
        amp: number format.
        ranks: the processes that train the same model on other slices.
        spans: names the parts of a step for profilers; None for plain `Spans`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        *,
        amp: Amp,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
        spans: Spans | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.amp = amp
        self.ranks = ranks
        self.device = next(model.parameters()).device
        self.spans = spans or Spans(self.device)
        class_weights = torch.tensor([config.any_weight, 1.0, 1.0, 1.0, 1.0, 1.0])
        weight_K = (class_weights / class_weights.mean()).to(self.device)
        self.loss = partial(known_loss, weight_K=weight_K)
        """Gives the loss for logits and targets, each of shape (B, K)."""
        self._ema = Ema(model, decay=config.ema_decay) if config.ema_decay else None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp.needs_scaler)
        self._state: _PhaseState | None = None

    @property
    def averaged_model(self) -> nn.Module:
        """The model that validates: the averaged weights if there are any."""
        return self._ema.model if self._ema else self.model

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return float(self._phase.optimizer.param_groups[0]["lr"])

    @property
    def _phase(self) -> _PhaseState:
        assert self._state is not None, "call start_phase before the first step"
        return self._state

    def start_phase(
        self, phase: Phase, num_steps: int, optimizer: dict[str, Any] | None = None
    ) -> None:
        """Make the optimizer, the schedule and the network of a phase.

        Args:
            phase: its settings.
            num_steps: steps in the whole phase.
            optimizer: the optimizer's state in the middle of the phase; None at the
                start.

        Raises:
            CheckpointError: the state is that of another implementation of Adam, or
                does not fit.
            RecipeError: an unknown optimizer or schedule, or CUDA graphs without a
                GPU.
            TrainError: no parameter requires a gradient.
        """
        self._state = None  # frees the memory of the phase before
        body, _ = body_and_head(self.model)
        for parameter in body:
            parameter.requires_grad_(not phase.freeze_body)
        made = make_optimizer(
            phase.optimizer,
            decay_groups(self.model),
            lr=phase.lr,
            betas=phase.betas,
            eps=phase.eps,
            weight_decay=phase.weight_decay,
        )
        if optimizer is not None:
            restore_optimizer(made, optimizer)
        self._state = _PhaseState(
            mixup_alpha=phase.mixup_alpha,
            optimizer=made,
            schedule=Schedule(
                kind=phase.schedule,
                lr=phase.lr,
                num_steps=num_steps,
                start=phase.start,
                final_lr=phase.final_lr,
            ),
            network=Network(self.model, self.config, self.ranks),
        )

    def completes_step(self, iteration: int) -> bool:
        """Whether the batch `iteration` of an epoch, from 0, is the last of a step."""
        return (iteration + 1) % self.config.accumulate == 0

    def add(self, batch: Batch, *, epoch: int, iteration: int) -> Tensor:
        """Add the gradients of a batch.

        Args:
            batch: on the model's device.
            epoch: from 0; with `iteration` and the rank it seeds the mixup.
            iteration: batch of the epoch, from 0.

        Returns:
            The loss, a float32 scalar on the device, detached.
        """
        network = self._phase.network
        with self.spans.part("copy"):
            images_BCHW, targets_BK = self._mixed(batch, epoch, iteration)
        with network.exchanging(is_due=self.completes_step(iteration)):
            with self.spans.part("forward"), self.amp.autocast():
                num_bags = len(targets_BK) - len(images_BCHW)
                logits = with_bags(network(images_BCHW), num_bags)
                loss = self.loss(logits, targets_BK)
            with self.spans.part("backward"):
                share = self._scaler.scale(loss / self.config.accumulate)
                share.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _mixed(self, batch: Batch, epoch: int, iteration: int) -> tuple[Tensor, Tensor]:
        images_BCHW, targets_BK = batch.images_BCHW.to(self.amp.dtype), batch.targets_BK
        if not self._phase.mixup_alpha:
            return images_BCHW, targets_BK
        return mix_up(
            images_BCHW,
            targets_BK,
            alpha=self._phase.mixup_alpha,
            seed=(self.config.seed, epoch, iteration, self.ranks.rank),
        )

    def update(self, step: int) -> None:
        """Take a step along the gradients that were added.

        Args:
            step: of the phase, from 0.
        """
        phase = self._phase
        with self.spans.part("optimizer"):
            phase.schedule.apply(phase.optimizer, step)
            self._scaler.step(phase.optimizer)
            self._scaler.update()
            phase.optimizer.zero_grad()
            if self._ema:
                self._ema.update()
        self.spans.end_step()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; ``model`` holds the weights to use elsewhere."""
        return {
            "model": self.averaged_model.state_dict(),
            "trained": self.model.state_dict() if self._ema else None,
            "optimizer": self._phase.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load weights and scaler; the optimizer's state goes to `start_phase`."""
        self.model.load_state_dict(state["trained"] if self._ema else state["model"])
        if self._ema:
            self._ema.load_state_dict(state["model"])
        self._scaler.load_state_dict(state["scaler"])


def compile_forward(
    model: nn.Module, device: torch.device, *, cuda_graphs: bool
) -> Forward:
    """Compile a model's forward and backward pass for full batches.

    Without a compiler (Triton for a GPU, a C++ compiler for the CPU) a warning says
    so and the model is returned as it is.

    Args:
        model: on its device; shares its weights with what is returned.
        device: where it runs.
        cuda_graphs: also record both passes as CUDA graphs and replay them.

    Raises:
        RecipeError: CUDA graphs are wanted without a GPU.
    """
    if cuda_graphs and device.type != "cuda":
        raise RecipeError(
            "train.cuda_graphs needs a GPU and this run is on the CPU; "
            "leave out train.cuda_graphs=true"
        )
    problem = _compiler_problem(device)
    if problem is not None:
        logger.warning(
            "not compiled, the compiler does not work here: %s; training continues "
            "without it",
            problem,
        )
        return model
    compiled: Forward = torch.compile(
        model, dynamic=False, mode="reduce-overhead" if cuda_graphs else None
    )
    return compiled


def _compiler_problem(device: torch.device) -> str | None:
    """The first line of the error that compiling a one-line function raises."""

    @torch.compile
    def negate(numbers: Any) -> Any:
        return -numbers

    try:
        negate(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way
        return first_line(error)
    return None
