"""How a model is trained, as settings: the phases of a run, and what they share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ichfast.errors import RecipeError

BEST_BY = ("valid_loss", "valid_weighted_log_loss")
"""What the best epoch can be the lowest of."""


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

    accumulate: int = 1
    """Batches whose gradients make one step: the update of a batch so many times
    larger. Batch norm and mixup still see one batch at a time."""

    best_by: str = "valid_loss"
    """The best epoch has the lowest ``valid_loss`` or ``valid_weighted_log_loss``."""

    patience: int | None = None
    """Epochs without a better one after which the run ends; None: never."""

    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints within an epoch; each epoch ends with one."""

    sync_batch_norm: bool = True
    """With several GPUs, batch norm takes its statistics over all of them, as one
    GPU would with the whole batch. False is faster, and no longer the same."""

    compile: bool = False
    """`torch.compile` the network; without a compiler a warning, and as it is."""

    cuda_graphs: bool = False
    """Replay forward and backward as CUDA graphs (``reduce-overhead`` of
    `torch.compile`): for small batches, where starting kernels takes longer than
    they run. Needs a GPU, a compiler and an `accumulate` of 1."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise RecipeError(f"train.epochs must be at least 1, got {self.epochs}")
        if not 0.0 <= self.ema_decay < 1.0 or not self.any_weight > 0.0:
            raise RecipeError(
                "train.ema_decay is in [0, 1) and train.any_weight above 0, "
                f"got {self.ema_decay} and {self.any_weight}"
            )
        if self.accumulate < 1 or not self.checkpoint_minutes >= 0:
            raise RecipeError(
                "train.accumulate is at least 1 and train.checkpoint_minutes at least "
                f"0, got {self.accumulate} and {self.checkpoint_minutes}"
            )
        if self.best_by not in BEST_BY:
            raise RecipeError(
                f"train.best_by is {' or '.join(BEST_BY)}, got {self.best_by!r}"
            )
        if self.seed not in range(2**63):
            raise RecipeError(f"train.seed is from 0 to 2**63 - 1, got {self.seed}")
        if self.patience is not None and self.patience < 1:
            raise RecipeError(f"train.patience must be at least 1, got {self.patience}")
        if self.cuda_graphs and self.accumulate > 1:
            raise RecipeError(
                "train.cuda_graphs reuses the memory of gradients, which "
                f"train.accumulate={self.accumulate} keeps; use one of the two"
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
