"""Complete settings of a run.

A recipe says everything that decides a run: data, augmentation, model, folds and
training. It is printed, stored with the run, and changed only by name
(``--set train.epochs=2``), so that two runs can be compared line by line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ichfast.augment.config import AugmentConfig
from ichfast.dataconfig import DataConfig
from ichfast.errors import RecipeError
from ichfast.folds import FOLD_SEED, NUM_FOLDS
from ichfast.models.build import ModelConfig
from ichfast.phases import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldConfig:
    """Which slices validate."""

    kind: str = "patient"
    """``patient``: whole patients; ``slice``: the reference's own, which leaks."""

    num_folds: int = NUM_FOLDS
    """Parts the slices are dealt into."""

    fold: int = 0
    """The part that validates."""

    seed: int = FOLD_SEED
    """Deals the parts."""

    def __post_init__(self) -> None:
        if self.kind not in ("patient", "slice"):
            raise RecipeError(f"folds.kind is patient or slice, got {self.kind!r}")
        if self.num_folds < 2 or not 0 <= self.fold < self.num_folds:
            raise RecipeError(
                f"folds.fold is in 0 to {self.num_folds - 1} with {self.num_folds} "
                f"folds of at least 2, got {self.fold}"
            )
        if self.seed < 0:
            raise RecipeError(f"folds.seed must be at least 0, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Complete settings of a run."""

    name: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    folds: FoldConfig = field(default_factory=FoldConfig)
