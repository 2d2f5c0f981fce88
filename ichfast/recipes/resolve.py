"""The recipes by name: the reference's experiments, and ours.

The recipes as a reader sees them: all as a table, or one in full.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ichfast.augment.config import EXP_30, PRESETS
from ichfast.errors import RecipeError, unknown
from ichfast.loading.config import MIN_SIZE, SIZE_STEP, DataConfig
from ichfast.models.build import ARCHS, ModelConfig
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.reference import EXPERIMENTS, ONE_CYCLE, Published, find_published
from ichfast.recipes.settings import describe, override
from ichfast.training.config import TrainConfig


def fast(arch: str = "resnext50", size: int = 224, device_type: str = "cuda") -> Recipe:
    """Ours: to the reference's best valid loss at 224, .0549, in the fewest minutes.

    Each choice, and the figure of the reference behind it where there is one:

    - resnext50 from ImageNet weights where the network can be reached. It is exp-30's
      backbone, which needed 40 epochs. Five epochs from ImageNet weights (exp-00, its
      notebook) came to .0621, for which exp-10 took 15 from scratch.
    - Nothing frozen: ten frozen epochs of exp-30 ended at .0723, five free ones of
      exp-00 at .0621.
    - One cycle of 12 epochs: what the rate's descent gives is most of the gain (exp-10
      fell from .0612 to .0556 in the last 5 of 20), and a cycle descends for 70 percent
      of its steps. Adam at 2e-3 for a batch of 128 is, by the square root, 4e-3 at 512;
      exp-00's notebook had 3.3e-3.
    - Three windows, brain, subdural and bone, as the competition's better teams had;
      in the network only the first convolution sees the difference.
    - exp-30's augmentation, without its lighting: a CT number means the same on every
      scanner. exp-10, with less augmentation, trained to .041 and validated at .056.
    - `any` counts twice in the loss as it does in the competition's metric.
    - Averaged weights validate, which steadies the last epochs.
    - The store's small level for sizes up to 256: a quarter of the bytes.
    - On a GPU the first epochs see smaller images, two thirds of the side, and the
      last third the whole: ImageNet trainers save a third of the time so (FFCV's and
      Mosaic's recipes), and a step costs what its pixels do.

    Batch size and learning rate follow the size and the device. On a CPU it is a trial
    run of two epochs from random weights. Folds are of patients, so its valid loss is
    an honest one and not to be held against the reference's of leaking folds, which
    ``--set folds.kind=slice`` gives. Not measured: its valid loss on the RSNA set.
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
            grow_from=max(MIN_SIZE, two_thirds) if on_gpu else None,
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
    """A backbone with ImageNet weights if it has any."""
    model = ModelConfig(arch=arch)
    has_weights = ARCHS[arch].timm_name is not None
    return replace(model, pretrained=pretrained) if has_weights else model


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


RECIPES: dict[str, Callable[..., Recipe]] = {**EXPERIMENTS, "fast": fast}
"""All recipes by name."""


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
        arch: another backbone than the recipe's, with a linear head, and ImageNet
            weights if the recipe takes them and there are any.
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


def format_recipes() -> str:
    """The recipes as a table, the reference's published results beside them."""
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
    return "\n".join(
        [
            *lines,
            "",
            "The results are the reference's own: loss unweighted, on slice folds that",
            "share patients; LB is the public stage-1 leaderboard. Its notebooks gave",
            "them; where its README says otherwise, exp-NN follows the README. Nothing",
            "of ours on the whole RSNA set is measured yet.",
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


def format_recipe(name: str) -> str:
    """What a recipe is for, as comments, and its settings, one a line.

    Raises:
        RecipeError: there is none of that name.
    """
    settings = describe(resolve_recipe(name))
    explanation = inspect.getdoc(RECIPES[name]) or ""
    comments = [f"# {line}".rstrip() for line in explanation.splitlines()]
    return "\n".join([*comments, "", settings])
