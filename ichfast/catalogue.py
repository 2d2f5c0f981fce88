"""The recipes as a reader sees them: all as a table, or one in full."""

from __future__ import annotations

import inspect

from ichfast.models.build import ARCHS
from ichfast.published import Published, find_published
from ichfast.recipes.resolve import RECIPES, resolve_recipe
from ichfast.recipes.settings import describe


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
