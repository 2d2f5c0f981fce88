"""Where hemorrhages lie in a head, how large they are, and how dense.

Source:
    Places, shapes and densities as in any text on the CT of hemorrhage: the epidural
    lens is thick and short, the subdural crescent thin and long, subarachnoid blood
    fills sulci and cisterns, blood in the ventricles settles at the back, the
    intraparenchymal bleed lies in the basal ganglia, the thalamus, a lobe or the
    cerebellum and has a rim of oedema. Fresh blood is dense; within a week or two it
    is as dense as the brain, and after weeks less dense. In the shared RSNA series
    and slices the cores of fresh bleeds have 59 to 66 HU.

Axes and shape letters are those of `ichfast.synth.canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ichfast.synth.canvas import ANGLE_A, Field

SUBTYPES = (
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)
"""The bleeds that can be drawn, in the order of `labels.CLASSES`."""

MIN_AREA_MM2 = 25.0
"""A bleed seen over less than this in a slice is not drawn there: 100 pixels of 0.5 mm.
"""

MIN_CONTRAST_HU = 12.0
"""A pixel shows a bleed if the blood changes it by this much or more."""


class Age(NamedTuple):
    """How old a bleed is."""

    mean_hu: float
    deviation_hu: float
    min_hu: float
    max_hu: float


AGES = {
    "acute": Age(62.0, 6.0, min_hu=50.0, max_hu=80.0),
    "subacute": Age(42.0, 4.0, min_hu=32.0, max_hu=50.0),
    "chronic": Age(19.0, 3.0, min_hu=12.0, max_hu=28.0),
}
"""Density of blood by its age: fresh, of some weeks, older."""

# Share of bleeds of each age where not all are fresh.
_OLD_SHARES = {"intraparenchymal": (0.93, 0.07, 0.0), "subdural": (0.8, 0.08, 0.12)}


class Bleed(NamedTuple):
    """One hemorrhage in three dimensions. Lengths in mm, angles in rad."""

    subtype: str
    age: str
    """One of `AGES`."""
    hu: float
    height: float
    half_height: float
    x: float = 0.0
    y: float = 0.0
    """Centre of an intraparenchymal bleed; `y` is the level of an intraventricular."""
    radius: float = 0.0
    """Radius of an intraparenchymal bleed in the plane."""
    angle: float = 0.0
    half_angle: float = 0.0
    thickness: float = 0.0
    """Depth under the skull of an extra-axial bleed."""


# Lowest and highest height, half height, half angle and thickness.
_RANGES = {
    "epidural": ((40.0, 80.0), (16.0, 28.0), (0.35, 0.6), (10.0, 22.0)),
    "subdural": ((60.0, 80.0), (28.0, 45.0), (0.8, 1.4), (4.0, 11.0)),
    "subarachnoid": ((45.0, 90.0), (18.0, 34.0), (0.6, 1.3), (0.0, 0.0)),
    "intraventricular": ((56.0, 66.0), (12.0, 26.0), (0.0, 0.0), (0.0, 0.0)),
    # Subarachnoid, too: an aneurysm's blood in the cisterns.
    "basal": ((30.0, 30.0), (18.0, 34.0), (2.0, 2.0), (0.0, 0.0)),
}
_BASAL_SHARE = 0.4
_VENTRICLE_LEVELS = (-60.0, 5.0, 20.0, 32.0)

# Share, then x, y and height of an intraparenchymal bleed.
_PLACES = (
    (0.3, 26.0, -6.0, 52.0),  # lentiform nucleus
    (0.15, 12.0, 12.0, 54.0),  # thalamus
    (0.18, 30.0, -45.0, 72.0),  # frontal lobe
    (0.17, 35.0, 30.0, 82.0),  # parietal lobe
    (0.1, 45.0, -8.0, 36.0),  # temporal lobe
    (0.1, 20.0, 42.0, 8.0),  # cerebellum
)


def draw_bleed(rng: np.random.Generator, subtype: str) -> Bleed:
    """Draw where a bleed lies, how large and how dense it is.

    Args:
        rng: Source of the random numbers.
        subtype: One of `SUBTYPES`.
    """
    side = float(rng.choice((-1.0, 1.0)))
    age = str(rng.choice(list(AGES), p=_OLD_SHARES.get(subtype, (1.0, 0.0, 0.0))))
    mean_hu, deviation_hu, min_hu, max_hu = AGES[age]
    hu = float(np.clip(rng.normal(mean_hu, deviation_hu), min_hu, max_hu))
    lateral = float(rng.uniform(-0.7, 0.7))
    if subtype == "intraparenchymal":
        shares = [place[0] for place in _PLACES]
        _, x, y, height = _PLACES[rng.choice(len(_PLACES), p=shares)]
        radius = rng.uniform(8.0, 22.0) * (0.6 if height < 20.0 else 1.0)
        return Bleed(
            subtype=subtype,
            age=age,
            hu=hu,
            height=height + rng.normal(0.0, 3.0),
            half_height=radius * rng.uniform(0.9, 1.3),
            x=side * (x + rng.normal(0.0, 2.0)),
            y=y + rng.normal(0.0, 3.0),
            radius=radius,
        )
    is_basal = subtype == "subarachnoid" and rng.random() < _BASAL_SHARE
    height, half_height, half_angle, thickness = (
        low if low == high else rng.uniform(low, high)
        for low, high in _RANGES["basal" if is_basal else subtype]
    )
    in_ventricles = subtype == "intraventricular"
    return Bleed(
        subtype=subtype,
        age=age,
        hu=hu,
        height=height,
        half_height=half_height,
        y=float(rng.choice(_VENTRICLE_LEVELS)) if in_ventricles else 0.0,
        angle=-np.pi / 2 if is_basal else lateral if side > 0 else np.pi - lateral,
        half_angle=half_angle,
        thickness=thickness,
    )


def reach(bleed: Bleed, height: float) -> float:
    """Size of a bleed at a height: 1 in its middle, 0 beyond its ends.

    Args:
        bleed: Any subtype.
        height: Of the slice, mm.
    """
    rest = 1.0 - ((height - bleed.height) / bleed.half_height) ** 2
    return max(rest, 0.0) ** 0.5


def midline_shift(bleeds: Sequence[Bleed], height: float) -> float:
    """How far bleeds push the deep brain to the right, mm.

    Args:
        bleeds: All bleeds of the head.
        height: Of the slice, mm.
    """
    shift_mm = 0.0
    for bleed in bleeds:
        push_mm = 0.25 * bleed.thickness + 0.3 * max(bleed.radius - 8.0, 0.0)
        side = np.sign(bleed.x + bleed.thickness * np.cos(bleed.angle))
        shift_mm -= float(side) * push_mm * reach(bleed, height)
    return shift_mm


def extra_axial_depth(bleed: Bleed, size: float) -> Field:
    """Thickness of a lens or a crescent over the angle, mm, shape (A,).

    Args:
        bleed: Epidural or subdural.
        size: Of the bleed at the height, 0 to 1: `reach`.
    """
    power = 2 if bleed.subtype == "epidural" else 4
    turn_A = _turn_from(bleed) / max(size, 0.1)
    profile_A = np.maximum(1.0 - turn_A**power, 0.0)
    return (bleed.thickness * size * profile_A).astype(np.float32)


def covered_angles(bleed: Bleed) -> Field:
    """1 at the angles that a subarachnoid bleed covers, 0 elsewhere, shape (A,)."""
    return np.clip(3.0 - 3.0 * np.abs(_turn_from(bleed)), 0.0, 1.0).astype(np.float32)


def _turn_from(bleed: Bleed) -> npt.NDArray[np.float64]:
    """Angle from the middle of a bleed, in units of its half angle, shape (A,)."""
    turn_A = np.mod(ANGLE_A - bleed.angle + np.pi, 2 * np.pi) - np.pi
    return turn_A / bleed.half_angle
