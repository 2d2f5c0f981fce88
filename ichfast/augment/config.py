"""The laws that augmentation is drawn from, and those with a name.

Laws say what may happen to a slice and how often; `ichfast.augment.parameters` draws
from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ichfast.errors import RecipeError

MAX_HOLES = 20
"""Holes a slice's arrays have room for; unused ones have side zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """The laws that parameters are drawn from. The default changes nothing.

    Raises:
        RecipeError: a value out of range.

    Source:
        The laws are fastai v1's `get_transforms` and `cutout`; `max_shift` and
        `window_jitter` are the competition's (1st and 4th place).
    """

    flip_probability: float = 0.0
    """Chance of a left-right flip."""

    dihedral_probability: float = 0.0
    """Chance of one of the square's eight symmetries: quarter turns, mirrored or not,
    each as likely, the identity among them. 1 is fastai's, in place of the flip."""

    affine_probability: float = 0.75
    """Chance of a rotation, of a warp and of a shift, each on its own."""

    max_rotation_deg: float = 0.0
    """Rotation is uniform between minus and plus this angle, degrees, 0 to 360."""

    zoom_probability: float = 0.75
    """Chance of a zoom."""

    min_zoom: float = 1.0
    max_zoom: float = 1.0
    """The zoom factor is uniform between the two; below 1 it shows air around."""

    zoom_focus: tuple[float, float] | None = None
    """Share of width and height the zoom keeps in place, and then every slice is
    zoomed; None draws the share, and whether to zoom."""

    max_warp: float = 0.0
    """Four-corner perspective warp: how far a corner moves, in half sides, 0 to 0.5."""

    max_shift: float = 0.0
    """How far the slice moves across and down, in sides of the output, 0 to 1; two
    uniform numbers between minus and plus this one."""

    max_lighting: float = 0.0
    """Brightness and contrast in logit space, 0 to 0.99; 0.2 is fastai's default.
    0.99 is a contrast of 1/100 to 100; the graph's arithmetic holds up to 250."""

    lighting_probability: float = 0.75
    """Chance of a change of brightness, and of contrast, each on its own."""

    window_jitter: tuple[float, float] = (0.0, 0.0)
    """How far a window's center, and its width, may lie off, HU; uniform, one draw
    a slice for all its windows. The 4th place of the competition used (7, 15)."""

    cutout_probability: float = 0.0
    """Chance that holes are cut at all."""

    cutout_holes: tuple[int, int] = (4, 20)
    """Fewest and most holes, both included."""

    cutout_side: tuple[int, int] = (2, 30)
    """Smallest and largest side in pixels, both included; one for all holes."""

    def __post_init__(self) -> None:
        for name in _CHANCES:
            found = getattr(self, name)
            _expect(0.0 <= found <= 1.0, name, "a chance between 0 and 1", found)
        for name, below in _LIMITS.items():
            found = getattr(self, name)
            _expect(0.0 <= found < below, name, f"0 or more, below {below:g}", found)
        _expect(
            0.0 < self.min_zoom <= self.max_zoom < float("inf"),
            "min_zoom and max_zoom",
            "two rising factors above 0",
            (self.min_zoom, self.max_zoom),
        )
        _expect(
            self.zoom_focus is None or all(0.0 <= at <= 1.0 for at in self.zoom_focus),
            "zoom_focus",
            "two shares between 0 and 1, or null",
            self.zoom_focus,
        )
        _expect(
            all(0.0 <= off < 1000.0 for off in self.window_jitter),
            "window_jitter",
            "two numbers of HU from 0 to 1000",
            self.window_jitter,
        )
        _expect(
            1 <= self.cutout_holes[0] <= self.cutout_holes[1] <= MAX_HOLES,
            "cutout_holes",
            f"two rising numbers from 1 to {MAX_HOLES}",
            self.cutout_holes,
        )
        _expect(
            1 <= self.cutout_side[0] <= self.cutout_side[1],
            "cutout_side",
            "two rising numbers of pixels from 1",
            self.cutout_side,
        )


_CHANCES = (
    "flip_probability",
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
"""What each must lie below."""


def _expect(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise RecipeError(f"augment.{name}: expected {expected}, found {found}")


NONE = AugmentConfig()
"""Nothing changes."""

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
"""The reference's strongest: rotation 30, zoom 1.4, no warp, cutout."""

EXP_10_MIXUP = replace(
    FASTAI, max_rotation_deg=30.0, zoom_probability=1.0, min_zoom=1.05, max_zoom=1.4
)
"""The reference's for mixup: rotation 30, every slice zoomed by 1.05 to 1.4.

Source:
    fastai v1 `zoom_crop(scale=(1.05, 1.4), do_rand=True)`, whose chance is 1. The
    zoom of up to 1.1 that `get_transforms` would put on top is left out.
"""

LIGHT = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=15.0,
    max_zoom=1.2,
)
"""Flip, a little rotation and zoom: for short runs."""

PRESETS: Mapping[str, AugmentConfig] = {
    "none": NONE,
    "light": LIGHT,
    "fastai": FASTAI,
    "exp-10-mixup": EXP_10_MIXUP,
    "exp-30": EXP_30,
}
"""Laws by name; ``--set augment=NAME`` takes them."""
