"""One optimizer step: forward, backward, update.

1. One code path: number format, mixup, averaging, freezing, accumulation, ranks and
   compilation are data.
2. Nothing in a step waits for the device.
3. With `accumulate` k on w ranks, a step is that of one batch k w times as large,
   up to rounding: gradients are means over all its slices. Three things look at a
   batch alone: mixup's partners; dropout's draws; and batch norm, except that on
   GPUs its statistics are over the ranks (`TrainConfig.sync_batch_norm`).

Shape letters: B slices of the batch, C channels, H rows, W columns, K classes.

`torch.compile`, where there is a compiler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ichfast.augment.mixup import mix_up
from ichfast.errors import RecipeError
from ichfast.loading.batch import Batch
from ichfast.models.build import body_and_head
from ichfast.models.precision import Amp
from ichfast.system.ranks import Ranks
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.ema import Ema
from ichfast.training.optimizers import decay_groups, make_optimizer
from ichfast.training.profiler import Spans
from ichfast.training.schedules import Schedule

_KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
"""Buffers are shared before validation only. The option has two names: the second is
torch's before it deprecated it."""


class Stepper:
    """A model with all that changes it: optimizer, schedule, scaler, average.

    Args:
        model: on its device.
        config: how to train.
        amp: number format.
        ranks: who trains the same model on other slices.
        spans: names the parts of a step; None: for nobody in particular.
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
        self._ema = Ema(model, decay=config.ema_decay) if config.ema_decay else None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp.needs_scaler)
        class_weights = torch.tensor([config.any_weight, 1.0, 1.0, 1.0, 1.0, 1.0])
        self.loss = nn.BCEWithLogitsLoss(
            weight=(class_weights / class_weights.mean()).to(self.device)
        )
        """Mean over slices and classes, of logits (B, K) and targets (B, K)."""

    @property
    def averaged_model(self) -> nn.Module:
        """The model that validates: the average of the weights, if there is one."""
        return self._ema.model if self._ema else self.model

    @property
    def learning_rate(self) -> float:
        """Of the step taken last."""
        return float(self._optimizer.param_groups[0]["lr"])

    def start_phase(
        self, phase: Phase, num_steps: int, optimizer: dict[str, Any] | None = None
    ) -> None:
        """Make the optimizer and the schedule of a phase.

        Args:
            phase: what to make.
            num_steps: steps in the whole phase.
            optimizer: its state in the middle of the phase; None at the start.
        """
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
        if optimizer is not None:
            self._optimizer.load_state_dict(optimizer)
        self._schedule = Schedule(
            kind=phase.schedule, lr=phase.lr, num_steps=num_steps, start=phase.start
        )
        self._wrap()

    def _wrap(self) -> None:
        """Put exchange between ranks and compilation around the model."""
        # Anew in each phase: what is exchanged are the parameters that train.
        wrapped = self.model
        self._exchange: DistributedDataParallel | None = None
        if self.ranks.world_size > 1:
            wrapped = self._exchange = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                **_KEEP_BUFFERS,
            )
        self._forward: Any = wrapped
        if self.config.compile or self.config.cuda_graphs:
            self._forward = compile_forward(
                wrapped, self.device, cuda_graphs=self.config.cuda_graphs
            )

    def completes_step(self, iteration: int) -> bool:
        """Whether a batch is the last one of its step.

        Args:
            iteration: of the epoch, from 0.
        """
        return (iteration + 1) % self.config.accumulate == 0

    def add(self, batch: Batch, *, epoch: int, iteration: int) -> Tensor:
        """Add the gradients of a batch.

        Args:
            batch: on the model's device.
            epoch: from 0; with `iteration` and the rank, it seeds the mixup.
            iteration: of the epoch, from 0.

        Returns:
            The loss, a float32 scalar on the device, detached.
        """
        with self.spans.part("copy"):
            images_BCHW, targets_BK = self._mixed(batch, epoch, iteration)
        with self._exchanging(self.completes_step(iteration)):
            with self.spans.part("forward"), self.amp.autocast():
                if self.config.cuda_graphs:
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                loss: Tensor = self.loss(self._forward(images_BCHW), targets_BK)
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

    def _exchanging(self, is_due: bool) -> AbstractContextManager[Any]:
        """Where gradients are exchanged between ranks, or kept for the next batch."""
        if self._exchange is None or is_due:
            return nullcontext()
        return self._exchange.no_sync()

    def update(self, step: int) -> None:
        """Take the step for which gradients were added.

        Args:
            step: of the phase, from 0.
        """
        with self.spans.part("optimizer"):
            self._schedule.apply(self._optimizer, step)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad()
            if self._ema:
                self._ema.update()
        self.spans.end_step()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; weights for others are under ``model``."""
        return {
            "model": self.averaged_model.state_dict(),
            "trained": self.model.state_dict() if self._ema else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take weights and scaler; the optimizer's state goes to `start_phase`."""
        self.model.load_state_dict(state["trained"] if self._ema else state["model"])
        if self._ema:
            self._ema.load_state_dict(state["model"])
        self._scaler.load_state_dict(state["scaler"])


logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to logits (B, K)."""


def compile_forward(
    model: nn.Module, device: torch.device, *, cuda_graphs: bool
) -> Forward:
    """Compile a model's forward and backward pass for full batches.

    Where the compiler is missing (Triton for a GPU, a C++ compiler for the CPU), a
    warning says so and the model is returned as it is.

    Args:
        model: on its device; shares its weights with what is returned.
        device: where it runs.
        cuda_graphs: also record both passes as CUDA graphs and replay them.

    Raises:
        RecipeError: CUDA graphs were asked for without a GPU.
    """
    if cuda_graphs and device.type != "cuda":
        raise RecipeError(
            "train.cuda_graphs needs a GPU and this run is on the CPU; "
            "leave out --cuda-graphs"
        )
    problem = _compiler_problem(device)
    if problem is not None:
        logger.warning(
            "not compiled, the compiler does not work here: %s; training goes on "
            "without it",
            problem,
        )
        return model
    compiled: Forward = torch.compile(
        model, dynamic=False, mode="reduce-overhead" if cuda_graphs else None
    )
    return compiled


def _compiler_problem(device: torch.device) -> str | None:
    """What is wrong with the compiler, found out on a function of one line."""

    @torch.compile
    def negate(numbers: Any) -> Any:
        return -numbers

    try:
        negate(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - a compiler may fail in any way
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None
