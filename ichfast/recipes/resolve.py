"""The recipes by name, resolved to complete settings or formatted for reading."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ichfast.augment.config import EXP_30, PRESETS
from ichfast.errors import RecipeError, unknown
from ichfast.loading.config import MIN_SIZE, SIZE_STEP, DataConfig
from ichfast.models.config import ARCHS, ModelConfig, find_arch, is_timm
from ichfast.recipes.published import slab_maxvit_512, wsl_resnext101_480
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.reference import EXPERIMENTS, ONE_CYCLE, Published, find_published
from ichfast.recipes.settings import describe, override
from ichfast.training.config import TrainConfig


def fast(arch: str = "resnext50", size: int = 224, device_type: str = "cuda") -> Recipe:
    """Default: aims at the reference's best valid loss, .0549 at 224, in least time.

    Each choice, with the reference's figures that support it:

    - resnext50, the backbone of exp-30, from ImageNet weights if they can be had.
      Five epochs from ImageNet weights (exp-00-notebook) reach .0621, for which
      exp-10 takes 15 from scratch; exp-30 takes 40 epochs in all.
    - Nothing frozen: ten frozen epochs of exp-30 end at .0723, five unfrozen ones of
      exp-00-notebook at .0621.
    - One cycle of 12 epochs: most of the gain comes while the learning rate falls
      (exp-10 goes from .0612 to .0556 in the last 5 of 20 epochs), and in one cycle it
      falls for 70 percent of the steps. Adam at 2e-3 for a batch of 128 is, by the
      square-root rule, 4e-3 at 512; exp-00-notebook has 3.3e-3.
    - Three windows, brain, subdural and bone, as the competition's better teams used;
      only the first convolution differs.
    - The augmentation of exp-30 without its lighting, as a CT number means the same on
      every scanner. exp-10, with less augmentation, trains to .041 and validates at
      .056.
    - `any` counts twice in the loss, as in the competition's metric.
    - The averaged weights validate, which steadies the last epochs.
    - The small level of the store for sizes up to 256: a quarter of the bytes.
    - On a GPU the images grow from two thirds of the side to the whole side, which the
      last third of the epochs sees. A step costs in proportion to its pixels; ImageNet
      recipes (FFCV, Mosaic) save a third of the time so. Not with ``timm:NAME``, which
      may take one size only.

    Batch size and learning rate follow size and device. On a CPU this is a trial run of
    two epochs from random weights. Folds are of patients, so its valid loss does not
    compare with the reference's, whose folds leak; ``--set folds.kind=slice`` gives
    those. Its valid loss on the RSNA set is not measured.

    Args:
        arch: one of `ARCHS`, or ``timm:NAME``.
        size: side of an image, pixels.
        device_type: ``cpu`` or ``cuda``.
    """
    on_gpu = device_type == "cuda"
    batch_size = fitting_batch_size(
        128, made_for=224, size=size, device_type=device_type
    )
    two_thirds = round(size * 2 / 3 / SIZE_STEP) * SIZE_STEP
    return Recipe(
        name="fast",
        model=_model(arch, pretrained="try" if on_gpu else "no"),
        data=DataConfig(
            size=size,
            grow_from=(
                max(MIN_SIZE, two_thirds) if on_gpu and not is_timm(arch) else None
            ),
            batch_size=batch_size,
            level="auto",
            windows=("brain", "subdural", "bone"),
            normalize="data",
        ),
        augment=replace(EXP_30, max_lighting=0.0),
        train=TrainConfig(
            phases=(
                replace(
                    ONE_CYCLE,
                    epochs=12 if on_gpu else 2,
                    lr=2e-3 * math.sqrt(batch_size / 128),
                ),
            ),
            any_weight=2.0,
            ema_decay=0.999 if on_gpu else 0.9,
        ),
    )


def _model(arch: str, *, pretrained: str) -> ModelConfig:
    """A backbone, with `pretrained` if it has ImageNet weights."""
    model = ModelConfig(arch=arch)
    has_weights = find_arch(arch).timm_name is not None
    return replace(model, pretrained=pretrained) if has_weights else model


CPU_BATCH_SIZE = 16
"""Upper limit of slices of 224 pixels in a batch on a CPU, where a larger batch is no
faster."""


def fitting_batch_size(
    batch_size: int, *, made_for: int, size: int, device_type: str
) -> int:
    """Shrink a batch until it fits a size and a device.

    Args:
        batch_size: slices that fit a GPU at the size `made_for`.
        made_for: side of an image, pixels.
        size: side of an image in the run, pixels.
        device_type: ``cpu`` or ``cuda``.

    Returns:
        Slices, at least 2.
    """
    fitting = batch_size * min(1.0, (made_for / size) ** 2)
    if device_type == "cpu":
        fitting = min(fitting, CPU_BATCH_SIZE * (224 / size) ** 2)
    return max(2, int(fitting))


RECIPES: dict[str, Callable[..., Recipe]] = {
    **EXPERIMENTS,
    "fast": fast,
    "slab-maxvit-512": slab_maxvit_512,
    "wsl-resnext101-480": wsl_resnext101_480,
}
"""All recipes by name."""


def resolve_recipe(
    name: str | None,
    *,
    arch: str | None = None,
    size: int | None = None,
    device_type: str = "cuda",
    assignments: Sequence[str] = (),
) -> Recipe:
    """Resolve a recipe's name to the complete settings of a run.

    Args:
        name: one of `RECIPES`; None for ``fast``.
        arch: replaces the recipe's backbone; with a linear head, and with ImageNet
            weights if the recipe starts from them and the backbone has any.
        size: replaces the recipe's size, pixels.
        device_type: ``cpu`` or ``cuda``; a CPU gets smaller batches.
        assignments: settings by name, applied last.

    Raises:
        RecipeError: an unknown name or setting, or a value out of range.

    Example:
        >>> import ichfast
        >>> recipe = ichfast.resolve_recipe("exp-30", assignments=["data.size=256"])
        >>> recipe.data.size
        256
    """
    name = name or "fast"
    if name not in RECIPES:
        raise RecipeError(unknown("recipe", name, RECIPES))
    if name == "fast":
        recipe = fast(arch or "resnext50", size or 224, device_type)
        return _override(recipe, assignments)
    recipe = RECIPES[name]()
    if arch is not None and arch != recipe.model.arch:
        model = _model(arch, pretrained=recipe.model.pretrained)
        recipe = replace(recipe, model=model)
    data = recipe.data
    size = size or data.size
    batch_size = fitting_batch_size(
        data.batch_size, made_for=data.size, size=size, device_type=device_type
    )
    data = replace(data, size=size, batch_size=batch_size)
    return _override(replace(recipe, data=data), assignments)


def _override(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    return override(recipe, assignments, presets={"augment": PRESETS})


TABLE_NOTE = """\
The results are the reference's, from its notebooks: unweighted loss on slice folds
that share patients; the train loss is fastai's moving average at the end of the epoch
(train_loss_smooth in metrics.csv); LB is the public stage-1 leaderboard. Where README
and notebook differ, exp-NN follows the README. docs/reference.md lists what no setting
repeats. slab-maxvit-512 and wsl-resnext101-480 follow other published work, which
`ichfast recipes NAME` tells. No result of ichfast on the whole RSNA set is measured
yet."""
"""Explains the results below the table of recipes."""


def format_recipes() -> str:
    """Format the recipes as a table, with the reference's published results."""
    header = (
        "recipe", "arch", "size", "batch", "epochs", "train loss", "valid loss",
        "accuracy", "LB", "LB TTA",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = [header]
    for name, make in RECIPES.items():
        recipe = make()
        published = find_published(name)
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
    archs = (
        f"Backbones for --arch: {', '.join(ARCHS)}.\n"
        "timm:NAME is any other classifier of timm, such as timm:convnext_atto."
    )
    return "\n".join([*lines, "", TABLE_NOTE, archs])


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


def format_recipe(name: str) -> str:
    """Format a recipe: its description as comments, then one setting per line.

    Raises:
        RecipeError: an unknown name.
    """
    settings = describe(resolve_recipe(name))
    explanation, *_ = (inspect.getdoc(RECIPES[name]) or "").partition("\n\nArgs:")
    comments = [f"# {line}".rstrip() for line in explanation.splitlines()]
    return "\n".join([*comments, "", settings])
