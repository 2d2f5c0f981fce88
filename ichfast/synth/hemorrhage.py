"""Where hemorrhages lie in a head, how large they are, and how dense.

Source:
    Places, shapes and densities as in any text on the CT of hemorrhage: the epidural
    lens is thick and short, the subdural crescent thin and long, subarachnoid blood
    fills sulci and cisterns, blood in the ventricles settles at the back, the
    intraparenchymal bleed lies in the basal ganglia, the thalamus, a lobe or the
    cerebellum and has a rim of oedema; fresh blood has 50 to 90 HU.

Axes, in mm: x to the right of the image, y to the back of the head (down the image),
height from the orbitomeatal line up. Shape letter: A angles around the head's axis,
from x towards y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.synth.canvas import NUM_ANGLES, Field

SUBTYPES = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)
"""The bleeds that can be drawn, in the order of `labels.CLASSES`."""

MIN_AREA_MM2 = 25.0
"""A bleed smaller than this in a slice is not drawn there: 100 pixels of 0.5 mm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bleed:
    """One hemorrhage in three dimensions. Lengths in mm, angles in rad."""

    subtype: str
    hu: float
    height: float
    half_height: float
    x: float = 0.0
    y: float = 0.0
    """Centre of an intraparenchymal bleed; `y` is the level of an intraventricular."""
    radius: float = 0.0
    """In the plane: intraparenchymal only."""
    angle: float = 0.0
    half_angle: float = 0.0
    thickness: float = 0.0
    """Depth under the skull of an extra-axial bleed."""


def draw_bleed(rng: np.random.Generator, subtype: str) -> Bleed:
    """Draw where a bleed of a subtype lies, how large and how dense it is.

    Args:
        rng: decides.
        subtype: one of `SUBTYPES`.
    """
    side = float(rng.choice((-1.0, 1.0)))
    hu = float(rng.uniform(54.0, 74.0))
    lateral = float(rng.uniform(-0.7, 0.7))
    angle = lateral if side > 0 else np.pi - lateral
    match subtype:
        case "epidural":
            return Bleed(
                subtype=subtype,
                hu=hu,
                height=rng.uniform(40.0, 80.0),
                half_height=rng.uniform(16.0, 28.0),
                angle=angle,
                half_angle=rng.uniform(0.35, 0.6),
                thickness=rng.uniform(10.0, 22.0),
            )
        case "subdural":
            return Bleed(
                subtype=subtype,
                hu=hu,
                height=rng.uniform(60.0, 80.0),
                half_height=rng.uniform(28.0, 45.0),
                angle=angle,
                half_angle=rng.uniform(0.8, 1.4),
                thickness=rng.uniform(4.0, 11.0),
            )
        case "subarachnoid":
            is_basal = rng.random() < 0.4  # an aneurysm's, in the cisterns
            return Bleed(
                subtype=subtype,
                hu=hu,
                height=22.0 if is_basal else rng.uniform(45.0, 90.0),
                half_height=rng.uniform(18.0, 34.0),
                angle=-np.pi / 2 if is_basal else angle,
                half_angle=2.0 if is_basal else rng.uniform(0.6, 1.3),
            )
        case "intraventricular":
            return Bleed(
                subtype=subtype,
                hu=hu,
                height=rng.uniform(56.0, 66.0),
                half_height=rng.uniform(12.0, 26.0),
                y=float(rng.choice((-60.0, 5.0, 20.0, 32.0))),
            )
        case _:
            x, y, height = _PLACES[rng.choice(len(_PLACES), p=_PLACE_P)]
            radius = rng.uniform(8.0, 22.0) * (0.6 if height < 20.0 else 1.0)
            return Bleed(
                subtype="intraparenchymal",
                hu=hu,
                height=height + rng.normal(0.0, 3.0),
                half_height=radius * rng.uniform(0.9, 1.3),
                x=side * (x + rng.normal(0.0, 2.0)),
                y=y + rng.normal(0.0, 3.0),
                radius=radius,
            )


# x, y, height of: lentiform nucleus, thalamus, frontal, parietal, temporal lobe,
# cerebellum.
_PLACES = (
    (26.0, -6.0, 52.0),
    (12.0, 12.0, 54.0),
    (30.0, -45.0, 72.0),
    (35.0, 30.0, 82.0),
    (45.0, -8.0, 36.0),
    (20.0, 42.0, 8.0),
)
_PLACE_P = (0.3, 0.15, 0.18, 0.17, 0.1, 0.1)


def reach(bleed: Bleed, height: float) -> float:
    """How large a bleed is at a height: 1 in its middle, 0 beyond its ends."""
    rest = 1.0 - ((height - bleed.height) / bleed.half_height) ** 2
    return max(rest, 0.0) ** 0.5


def _turn_from(bleed: Bleed) -> npt.NDArray[np.float64]:
    """Angle from the middle of a bleed, in units of its half angle, shape (A,)."""
    angle = np.linspace(0.0, 2 * np.pi, NUM_ANGLES, endpoint=False) - bleed.angle
    return (np.mod(angle + np.pi, 2 * np.pi) - np.pi) / bleed.half_angle


def midline_shift(bleeds: Sequence[Bleed], height: float) -> float:
    """How far the bleeds push the deep brain to the right at a height, mm."""
    shift_mm = 0.0
    for bleed in bleeds:
        push_mm = 0.25 * bleed.thickness + 0.3 * max(bleed.radius - 8.0, 0.0)
        side = np.sign(bleed.x + bleed.thickness * np.cos(bleed.angle))
        shift_mm -= float(side) * push_mm * reach(bleed, height)
    return shift_mm


def extra_axial_depth(bleed: Bleed, height: float) -> Field:
    """Thickness of a lens or a crescent over the angle, mm, shape (A,)."""
    size = reach(bleed, height)
    power = 2 if bleed.subtype == "epidural" else 4
    turn = _turn_from(bleed) / max(size, 0.1)
    profile = np.maximum(1.0 - turn**power, 0.0)
    return (bleed.thickness * size * profile).astype(np.float32)


def covered_angles(bleed: Bleed) -> Field:
    """1 at the angles a subarachnoid bleed covers, 0 elsewhere, shape (A,)."""
    return np.clip(3.0 - 3.0 * np.abs(_turn_from(bleed)), 0.0, 1.0).astype(np.float32)
