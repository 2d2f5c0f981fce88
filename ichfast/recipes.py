"""Complete, named settings: the reference's experiments, and ours.

A recipe says everything that decides a run: data, augmentation, model, folds and
training. It is printed, stored with the run, and changed only by name
(``--set train.epochs=2``), so that two runs can be compared line by line.

The reference is the fastai v1 project whose experiments 00 to 30 these are. Its
README and its notebooks differ in places; the README is followed, and each recipe
says where the notebook did otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ichfast.augment import EXP_10_MIXUP, EXP_30, FASTAI, AugmentConfig
from ichfast.errors import RecipeError
from ichfast.folds import FOLD_SEED, NUM_FOLDS
from ichfast.loader import DataConfig
from ichfast.models import ARCHS
from ichfast.phases import Phase, TrainConfig
from ichfast.published import PUBLISHED, Published
from ichfast.settings import override, unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network, and what it starts from."""

    arch: str
    """A name of `models.ARCHS`."""

    head: str = "linear"
    """``linear``, or the reference's ``concat-pool``."""

    pretrained: str = "no"
    """``yes``: ImageNet weights or an error; ``try``: or, with a warning, random
    ones where there is no network; ``no``."""

    weights: str = ""
    """A file to start from: safetensors, or a checkpoint of another run."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHS:
            raise RecipeError(unknown("architecture", self.arch, ARCHS))
        if self.pretrained not in ("yes", "try", "no"):
            raise RecipeError(
                f"model.pretrained is yes, try or no, got {self.pretrained!r}"
            )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Complete settings of a run."""

    name: str
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    folds: FoldConfig = field(default_factory=FoldConfig)


def exp_00() -> Recipe:
    """EfficientNet-B0 at 224 from ImageNet weights: a frozen start, then Ranger.

    The reference reports train loss .054292, valid loss .059521, accuracy .978539,
    leaderboard .086, with TTA .078. Its notebook differs: no normalisation, the
    file's own window, and nothing frozen in the first five epochs.
    """
    return Recipe(
        name="exp-00",
        model=ModelConfig(arch="efficientnet-b0", pretrained="try"),
        data=DataConfig(size=224, batch_size=512, normalize="imagenet"),
        augment=FASTAI,
        folds=FoldConfig(kind="slice"),
        train=TrainConfig(
            phases=(
                replace(_ONE_CYCLE, epochs=5, lr=1e-2 / 3, freeze_body=True),
                Phase(epochs=20, lr=1e-3 / 8),
            )
        ),
    )


def exp_10() -> Recipe:
    """xresnet50 with self-attention at 224 from scratch.

    The reference reports train loss .041329, valid loss .055582, accuracy .980156,
    leaderboard .090, with TTA .079. Its notebook differs: learning rate 1e-2/3, no
    normalisation, the file's own window.
    """
    return Recipe(
        name="exp-10",
        model=ModelConfig(arch="xresnet50-attn"),
        data=DataConfig(size=224, batch_size=384, normalize="data"),
        augment=FASTAI,
        folds=FoldConfig(kind="slice"),
        train=TrainConfig(phases=(Phase(epochs=20, lr=1e-3 / 8),)),
    )


def exp_10_tfl() -> Recipe:
    """exp-10's weights, trained on at 512.

    The reference reports train loss .050205, valid loss .055050, accuracy .979957,
    leaderboard .076, with TTA .074.
    """
    return replace(
        exp_10(),
        name="exp-10-tfl",
        model=ModelConfig(arch="xresnet50-attn", weights="runs/exp-10/best.pt"),
        data=DataConfig(size=512, batch_size=64, normalize="data"),
        train=TrainConfig(phases=(Phase(epochs=5, lr=1e-3),)),
    )


def exp_10_mixup() -> Recipe:
    """exp-10's network from scratch with mixup, in two phases.

    The reference reports, after the second phase, train loss .086897 (of mixed
    slices), valid loss .057901, accuracy .979283, leaderboard .084, with TTA .074.
    The optimizer of its one-cycle phase is not stated: Adam, as in its others.
    """
    return replace(
        exp_10(),
        name="exp-10-mixup",
        augment=EXP_10_MIXUP,
        train=TrainConfig(
            phases=(
                Phase(epochs=25, lr=1e-2 / 2, mixup_alpha=0.4),
                replace(
                    _ONE_CYCLE, epochs=30, lr=1e-3 / 2, start=0.15, mixup_alpha=0.4
                ),
            )
        ),
    )


def exp_20() -> Recipe:
    """Res2Net50 at 224 from scratch.

    The reference reports train loss .053704, valid loss .059312, accuracy .978431,
    leaderboard .084, with TTA .079. Its notebook differs: learning rate 1e-2/3.
    """
    return replace(
        exp_10(),
        name="exp-20",
        model=ModelConfig(arch="res2net50"),
        train=TrainConfig(phases=(Phase(epochs=20, lr=1e-3 / 8, betas=(0.92, 0.99)),)),
    )


def exp_30() -> Recipe:
    """ResNeXt50 at 224 from ImageNet weights: frozen, then Ranger; cutout.

    The reference reports train loss .045051, valid loss .054926, accuracy .980641,
    leaderboard .095, with TTA .079. Its notebook differs: the learning rate falls
    after .68 of the steps rather than .7.
    """
    return Recipe(
        name="exp-30",
        model=ModelConfig(arch="resnext50", head="concat-pool", pretrained="try"),
        data=DataConfig(size=224, batch_size=512, normalize="imagenet"),
        augment=EXP_30,
        folds=FoldConfig(kind="slice"),
        train=TrainConfig(
            phases=(
                replace(_ONE_CYCLE, epochs=10, lr=1e-2, freeze_body=True),
                Phase(epochs=30, lr=1e-4, betas=(0.92, 0.99)),
            )
        ),
    )


def fast(arch: str = "resnext50", size: int = 224, device_type: str = "cuda") -> Recipe:
    """Ours: patient folds, three windows, the competition's class weights.

    Batch size and learning rate follow the size and the device; on a CPU it is a
    trial run of two epochs.

    The windows brain, subdural and bone are what the competition's better teams
    fed their networks; `any` counts twice in the loss as it does in the metric;
    averaged weights validate, which makes the last epochs steadier. It reads the
    store's small level for sizes up to 256, a quarter of the bytes. Not measured
    yet: its validation loss on the whole RSNA set.
    """
    batch_size = fitting_batch_size(
        128, made_for=224, size=size, device_type=device_type
    )
    return Recipe(
        name="fast",
        model=ModelConfig(arch=arch),
        data=DataConfig(
            size=size,
            batch_size=batch_size,
            level="auto",
            windows=("brain", "subdural", "bone"),
            normalize="data",
        ),
        augment=replace(EXP_30, max_lighting=0.0),
        train=TrainConfig(
            phases=(
                replace(
                    _ONE_CYCLE,
                    epochs=8 if device_type == "cuda" else 2,
                    lr=2e-3 * math.sqrt(batch_size / 128),
                ),
            ),
            any_weight=2.0,
            ema_decay=0.999 if device_type == "cuda" else 0.9,
        ),
    )


CPU_BATCH_SIZE = 16
"""Most slices of 224 px in a batch on a CPU; a larger batch is no faster there."""


def fitting_batch_size(
    batch_size: int, *, made_for: int, size: int, device_type: str
) -> int:
    """Shrink a batch until it fits a size and a device.

    Args:
        batch_size: slices that fit a GPU.
        made_for: the size they have then, pixels.
        size: the size they will have, pixels.
        device_type: ``cpu`` or ``cuda``.
    """
    fitting = batch_size * min(1.0, (made_for / size) ** 2)
    if device_type == "cpu":
        fitting = min(fitting, CPU_BATCH_SIZE * (224 / size) ** 2)
    return max(2, int(fitting))


_ONE_CYCLE = Phase(
    epochs=1,
    lr=1e-3,
    schedule="one-cycle",
    start=0.3,
    optimizer="adam",
    betas=(0.9, 0.99),
    eps=1e-5,
)
"""fastai v1's `fit_one_cycle` with its Adam."""

RECIPES: dict[str, Callable[..., Recipe]] = {
    "exp-00": exp_00,
    "exp-10": exp_10,
    "exp-10-tfl": exp_10_tfl,
    "exp-10-mixup": exp_10_mixup,
    "exp-20": exp_20,
    "exp-30": exp_30,
    "fast": fast,
}
"""All recipes by name."""


def format_recipes() -> str:
    """The recipes as a table, the reference's published results beside them."""
    header = (
        "recipe", "arch", "size", "batch", "epochs", "train loss", "valid loss",
        "accuracy", "LB", "LB TTA",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [header]
    for name, make in RECIPES.items():
        recipe = make()
        published = PUBLISHED.get(name)
        rows.append(
            (
                name,
                recipe.model.arch,
                str(recipe.data.size),
                str(recipe.data.batch_size),
                "+".join(str(phase.epochs) for phase in recipe.train.phases),
                *(
                    f"{value:.{digits}f}" if value is not None else "-"
                    for value, digits in _results(published)
                ),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            "The results are the reference's own: loss unweighted, on slice folds that",
            "share patients; LB is the public stage-1 leaderboard. Nothing of ours on",
            "the whole RSNA set is measured yet.",
            f"Backbones for --arch: {', '.join(ARCHS)}.",
        ]
    )


def _results(published: Published | None) -> list[tuple[float | None, int]]:
    if published is None:
        return [(None, 0)] * 5
    return [
        (published.train_loss, 5),
        (published.valid_loss, 5),
        (published.accuracy, 4),
        (published.leaderboard, 3),
        (published.leaderboard_tta, 3),
    ]


def resolve_recipe(
    name: str | None,
    *,
    arch: str | None = None,
    size: int | None = None,
    device_type: str = "cuda",
    assignments: Sequence[str] = (),
) -> Recipe:
    """Put the settings of a run together.

    Args:
        name: of a recipe; None for ``fast``.
        arch: another backbone than the recipe's.
        size: another size, pixels.
        device_type: ``cpu`` or ``cuda``; a CPU gets smaller batches.
        assignments: settings by name, which have the last word.

    Raises:
        RecipeError: an unknown name or setting, or a value out of range.
    """
    name = name or "fast"
    if name not in RECIPES:
        raise RecipeError(unknown("recipe", name, RECIPES))
    if name == "fast":
        recipe = fast(arch or "resnext50", size or 224, device_type)
        return override(recipe, assignments)
    recipe = RECIPES[name]()
    if arch not in (None, recipe.model.arch):
        recipe = replace(recipe, model=ModelConfig(arch=arch))
    data = recipe.data
    size = size or data.size
    batch_size = fitting_batch_size(
        data.batch_size, made_for=data.size, size=size, device_type=device_type
    )
    data = replace(data, size=size, batch_size=batch_size)
    return override(replace(recipe, data=data), assignments)
