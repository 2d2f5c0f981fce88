"""Settings of training: the phases of a run, and what they share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ichfast.errors import RecipeError

BEST_BY = ("valid_loss", "valid_weighted_log_loss")
"""Columns of the history by which the best epoch can be chosen; lowest is best."""

MIN_BATCH_NORM_SLICES = 32
"""Slices in a GPU's batch from which batch norm does as well without the other GPUs.

Source:
    Goyal et al. 2017, arXiv:1706.02677, train with 32 images per GPU on up to 256
    GPUs without loss; Wu and He 2018, arXiv:1803.08494, show the loss with fewer.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A number of epochs with one optimizer and one schedule."""

    epochs: int
    """Number of epochs."""

    lr: float
    """Highest learning rate."""

    schedule: str = "flat-cosine"
    """A name of `training.schedules.SCHEDULES`."""

    start: float = 0.7
    """Share of the steps, in [0, 1), after which the learning rate falls."""

    final_lr: float = 0.0
    """Learning rate at the end, from 0 to `lr`; 0 for ``one-cycle``."""

    optimizer: str = "ranger"
    """``adam``, ``radam``, ``ranger`` or ``lamb``."""

    betas: tuple[float, float] = (0.95, 0.99)
    """Decay rates of the averages of the gradient and of its square."""

    eps: float = 1e-6
    """Added to the square root of the second average."""

    weight_decay: float = 1e-2
    """Decoupled weight decay; batch norm and biases have none."""

    freeze_body: bool = False
    """Train the head and batch norm only."""

    mixup_alpha: float = 0.0
    """Mixup draws each slice's share from Beta(alpha, alpha); 0 for no mixup."""

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
    """The phases, in order."""

    epochs: int | None = None
    """Epochs in total; the phases shrink or grow in proportion. None: the phases'
    own."""

    any_weight: float = 1.0
    """Weight of the class `any` in the loss; 2 in the competition's metric."""

    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which then validates; 0 for none."""

    amp: str = "auto"
    """``auto``, ``bf16``, ``fp16`` or ``fp32``."""

    seed: int = 42
    """Seed of weights, order, augmentation, dropout and mixup."""

    accumulate: int = 1
    """Batches per step. Their gradients are averaged, as in one larger batch. Batch
    norm and mixup still see one batch at a time."""

    best_by: str = "valid_loss"
    """The best epoch has the lowest ``valid_loss`` or ``valid_weighted_log_loss``."""

    patience: int | None = None
    """Epochs without a better one after which the run ends; None: never early."""

    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints within an epoch; each epoch ends with one."""

    sync_batch_norm: bool | None = None
    """With several GPUs, take batch norm's statistics over all of them, as one GPU
    with the whole batch would. The host then waits for the GPU in each of these
    layers. None: only if a GPU's batch has fewer than `MIN_BATCH_NORM_SLICES`."""

    compile: bool = False
    """Compile the network with `torch.compile`. Without a compiler the run warns and
    trains uncompiled."""

    cuda_graphs: bool = False
    """Replay forward and backward pass as CUDA graphs (``reduce-overhead`` of
    `torch.compile`). Helps with small batches, whose kernels take longer to launch
    than to run. Needs a GPU, a compiler and an `accumulate` of 1."""

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

    def synchronizes_batch_norm(self, batch_size: int) -> bool:
        """Whether batch norm's statistics are those of all GPUs.

        Args:
            batch_size: slices in one GPU's batch.
        """
        if self.sync_batch_norm is None:
            return batch_size < MIN_BATCH_NORM_SLICES
        return self.sync_batch_norm

    def planned_phases(self) -> tuple[Phase, ...]:
        """The phases scaled to `epochs` in total; those left without any dropped."""
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
