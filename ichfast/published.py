"""What the reference reports for its experiments, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the reference reports for an experiment; loss unweighted, slice folds."""

    train_loss: float
    valid_loss: float
    accuracy: float
    leaderboard: float
    leaderboard_tta: float
    images_per_s: float | None
    """Training and validation slices over the time of an epoch; None: not given."""
    gpu_minutes: float
    """Epochs times the time its notebooks show for one, validation included."""


PUBLISHED = {
    "exp-00": Published(
        train_loss=0.054292,
        valid_loss=0.059521,
        accuracy=0.978539,
        leaderboard=0.086,
        leaderboard_tta=0.078,
        images_per_s=835.0,
        gpu_minutes=336.0,
    ),
    "exp-10": Published(
        train_loss=0.041329,
        valid_loss=0.055582,
        accuracy=0.980156,
        leaderboard=0.090,
        leaderboard_tta=0.079,
        images_per_s=544.0,
        gpu_minutes=413.0,
    ),
    "exp-10-tfl": Published(
        train_loss=0.050205,
        valid_loss=0.055050,
        accuracy=0.979957,
        leaderboard=0.076,
        leaderboard_tta=0.074,
        images_per_s=100.0,
        gpu_minutes=568.0,
    ),
    "exp-10-mixup": Published(
        train_loss=0.086897,
        valid_loss=0.057901,
        accuracy=0.979283,
        leaderboard=0.084,
        leaderboard_tta=0.074,
        images_per_s=None,
        gpu_minutes=1151.0,
    ),
    "exp-20": Published(
        train_loss=0.053704,
        valid_loss=0.059312,
        accuracy=0.978431,
        leaderboard=0.084,
        leaderboard_tta=0.079,
        images_per_s=443.0,
        gpu_minutes=508.0,
    ),
    "exp-30": Published(
        train_loss=0.045051,
        valid_loss=0.054926,
        accuracy=0.980641,
        leaderboard=0.095,
        leaderboard_tta=0.079,
        images_per_s=627.0,
        gpu_minutes=681.0,
    ),
}
"""The reference's results, from its notebooks' output."""


def find_published(recipe: str) -> Published | None:
    """The reference's results of a recipe, or of the notebook that gave them.

    Args:
        recipe: its name.

    Returns:
        None for a recipe that is not the reference's.
    """
    return PUBLISHED.get(recipe.removesuffix("-notebook"))
