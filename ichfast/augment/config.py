"""Settings of the augmentation, and the named presets.

The settings are distributions: what may happen to a slice, how strongly and how often.
`ichfast.augment.parameters` draws from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ichfast.errors import RecipeError

MAX_HOLES = 20
"""Upper limit of holes in a slice, and the length of their arrays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """The distributions that parameters are drawn from. The default changes nothing.

    Raises:
        RecipeError: a value is out of range.

    Source:
        fastai v1's `get_transforms` and `cutout`. `max_shift` and `window_jitter` come
        from the competition's 1st and 4th place.

    Example:
        >>> import ichfast
        >>> ichfast.AugmentConfig(flip_probability=0.5, max_rotation_deg=10.0).max_zoom
        1.0
    """

    flip_probability: float = 0.0
    """Probability of a left-right flip."""

    depth_flip_probability: float = 0.0
    """Probability that the neighbours above and below a slice are swapped; only with
    `DataConfig.neighbours`."""

    dihedral_probability: float = 0.0
    """Probability of a symmetry of the square, drawn uniformly from all eight: quarter
    turns, mirrored or not, the identity included. fastai uses 1, without a flip."""

    affine_probability: float = 0.75
    """Probability of a rotation, of a warp and of a shift, drawn independently."""

    max_rotation_deg: float = 0.0
    """Largest rotation, degrees, 0 to 360; uniform in both directions."""

    zoom_probability: float = 0.75
    """Probability of a zoom."""

    min_zoom: float = 1.0
    max_zoom: float = 1.0
    """The zoom factor is uniform between `min_zoom` and `max_zoom`; a factor below 1
    shows air around the slice."""

    zoom_focus: tuple[float, float] | None = None
    """Point that the zoom keeps in place, as fractions of width and height. If set,
    every slice is zoomed; None draws the point, and whether to zoom."""

    max_warp: float = 0.0
    """Four-corner perspective warp: how far a corner may move, in half sides, 0 to
    0.5."""

    max_shift: float = 0.0
    """Largest shift across and down, in sides of the output, 0 to 1; uniform in both
    directions."""

    max_lighting: float = 0.0
    """Change of brightness, then of contrast, in logit space, 0 to 0.99; fastai's
    default is 0.2. 0.99 is a contrast of 1/100 to 100; the graph's arithmetic holds up
    to 186."""

    lighting_probability: float = 0.75
    """Probability of a change of brightness and of contrast, drawn independently."""

    window_jitter: tuple[float, float] = (0.0, 0.0)
    """Largest change of a window's center and of its width, HU; uniform in both
    directions, the same for all windows of a slice. The competition's 4th place used
    (7, 15)."""

    cutout_probability: float = 0.0
    """Probability that holes are cut."""

    cutout_holes: tuple[int, int] = (4, 20)
    """Minimum and maximum number of holes, both included."""

    cutout_side: tuple[int, int] = (2, 30)
    """Minimum and maximum side in pixels, both included; all holes of a slice have the
    same side."""

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            found = getattr(self, name)
            _expect(0.0 <= found <= 1.0, name, "a probability from 0 to 1", found)
        for name, below in _LIMITS.items():
            found = getattr(self, name)
            _expect(0.0 <= found < below, name, f"0 or more, below {below:g}", found)
        _expect(
            0.0 < self.min_zoom <= self.max_zoom < float("inf"),
            "min_zoom and max_zoom",
            "two increasing factors above 0",
            (self.min_zoom, self.max_zoom),
        )
        _expect(
            self.zoom_focus is None or all(0.0 <= at <= 1.0 for at in self.zoom_focus),
            "zoom_focus",
            "two fractions from 0 to 1, or null",
            self.zoom_focus,
        )
        _expect(
            all(0.0 <= off < 1000.0 for off in self.window_jitter),
            "window_jitter",
            "two numbers of HU from 0 to below 1000",
            self.window_jitter,
        )
        _expect(
            1 <= self.cutout_holes[0] <= self.cutout_holes[1] <= MAX_HOLES,
            "cutout_holes",
            f"two increasing numbers from 1 to {MAX_HOLES}",
            self.cutout_holes,
        )
        _expect(
            1 <= self.cutout_side[0] <= self.cutout_side[1],
            "cutout_side",
            "two increasing numbers of pixels from 1",
            self.cutout_side,
        )


_PROBABILITIES = (
    "flip_probability",
    "depth_flip_probability",
    "dihedral_probability",
    "affine_probability",
    "zoom_probability",
    "lighting_probability",
    "cutout_probability",
)

_LIMITS = {
    "max_rotation_deg": 361.0,
    "max_warp": 0.5,
    "max_shift": 1.0,
    "max_lighting": 0.99,
}
"""Upper bound of each setting, excluded."""


def _expect(valid: bool, name: str, expected: str, found: object) -> None:
    if not valid:
        raise RecipeError(f"augment.{name}: expected {expected}, found {found}")


NONE = AugmentConfig()
"""No augmentation."""

FASTAI = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=10.0,
    max_zoom=1.1,
    max_warp=0.2,
    max_lighting=0.2,
)
"""fastai v1's `get_transforms()`."""

EXP_30 = replace(
    FASTAI,
    max_rotation_deg=30.0,
    max_zoom=1.4,
    max_warp=0.0,
    cutout_probability=0.5,
)
"""The reference's strongest augmentation: rotation 30, zoom 1.4, no warp, cutout."""

EXP_10_MIXUP = replace(
    FASTAI, max_rotation_deg=30.0, zoom_probability=1.0, min_zoom=1.05, max_zoom=1.4
)
"""The reference's augmentation for mixup: rotation 30, all slices zoomed 1.05 to 1.4.

Source:
    fastai v1 `zoom_crop(scale=(1.05, 1.4), do_rand=True)`, whose probability is 1. The
    further zoom of up to 1.1 in `get_transforms` is left out.
"""

LIGHT = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=15.0,
    max_zoom=1.2,
)
"""A flip, a small rotation and a small zoom, for short runs."""

PRESETS: Mapping[str, AugmentConfig] = {
    "none": NONE,
    "light": LIGHT,
    "fastai": FASTAI,
    "exp-10-mixup": EXP_10_MIXUP,
    "exp-30": EXP_30,
}
"""Settings by name, as ``--set augment=NAME`` takes them."""
