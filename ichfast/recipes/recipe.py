"""A recipe: the complete settings of a run.

A recipe holds all that decides a run: data, augmentation, model, folds and training.
It is printed, stored with the run, and changed by name (``--set train.epochs=2``), so
two runs can be compared line by line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ichfast.augment.config import AugmentConfig
from ichfast.loading.config import DataConfig
from ichfast.loading.splits import FoldConfig
from ichfast.models.config import ModelConfig
from ichfast.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Complete settings of a run.

    Example:
        >>> import ichfast
        >>> recipe = ichfast.resolve_recipe("exp-30")
        >>> recipe.model.arch, recipe.data.size, recipe.augment.max_rotation_deg
        ('resnext50', 224, 30.0)
    """

    name: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    folds: FoldConfig = field(default_factory=FoldConfig)
