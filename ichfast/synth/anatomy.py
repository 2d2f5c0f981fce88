"""The head without hemorrhages: what differs between patients, and where things lie.

Skin, skull and the brain's room are outlines: radii over the angle around the head's
axis, for each height. The skull base is in `ichfast.synth.skullbase`. Every organ is an
ellipsoid in a table below, in mm from the axis and the orbitomeatal line. Layers such
as the scalp are tables of HU over a depth.

Source:
    Sizes, places and CT numbers as in any atlas of cross-sectional anatomy, adjusted
    by eye beside slices of the RSNA 2019 set.

Shape letter: A angles around the head's axis, from x towards y
(`ichfast.synth.canvas`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from ichfast.synth.canvas import ANGLE_A, NUM_ANGLES, Ellipsoid, Field, make_table

BASE_TOP_MM = 34.0
"""Height above which the head is a dome; below it lie the skull base and the face."""

MEAN_HALF_WIDTH, MEAN_HALF_LENGTH = 74.5, 93.0
"""Half axes of the head that the tables below describe, mm."""

FAT_HU, SKIN_HU, MUSCLE_HU = -95.0, 35.0, 58.0
CSF_HU, GREY_HU, WHITE_HU = 9.0, 37.0, 29.0


class Anatomy(NamedTuple):
    """What differs between patients. Lengths in mm."""

    half_width: float
    half_length: float
    vertex: float
    """Height of the skin at the top of the head."""
    scalp: float
    skull: float
    harmonics: list[tuple[float, float]]
    """Amplitude and phase (rad) of the outline's waves, from the second order on."""
    warp: list[float]
    """Phases of the bending of the coordinates, rad."""
    fold_offset: list[float]
    """Place of this brain in the shared field of folds."""
    atrophy: float
    """0 is young and tight, 1 is wide sulci and ventricles."""
    bone_hu: float
    calcified_hu: tuple[float, float]
    """Choroid plexus and pineal gland; 0 without calcification."""
    sinus: float
    """Size of the air-filled sinuses, 1 on average."""
    asymmetry: list[float]
    """How much larger the right one of a pair is than the mean, for each pair."""


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    size = rng.normal(1.0, 0.03)
    return Anatomy(
        half_width=MEAN_HALF_WIDTH * size * rng.normal(1.0, 0.025),
        half_length=MEAN_HALF_LENGTH * size * rng.normal(1.0, 0.025),
        vertex=122.0 * size,
        scalp=rng.uniform(3.0, 6.5),
        skull=rng.uniform(6.5, 10.0),
        harmonics=[(rng.normal(0.0, 0.011), rng.uniform(0.0, 6.28)) for _ in range(4)],
        warp=rng.uniform(0.0, 6.28, 6).tolist(),
        fold_offset=rng.uniform((0.0, 0.0, 64.0), (256.0, 256.0, 192.0)).tolist(),
        atrophy=float(rng.beta(1.3, 1.7)),
        bone_hu=rng.normal(1250.0, 120.0),
        calcified_hu=(
            rng.uniform(120.0, 420.0) if rng.random() < 0.6 else 0.0,
            rng.uniform(100.0, 300.0) if rng.random() < 0.6 else 0.0,
        ),
        sinus=rng.uniform(0.8, 1.2),
        asymmetry=rng.normal(0.0, 0.04, 7).tolist(),
    )


def size_of(anatomy: Anatomy) -> tuple[float, float]:
    """Width and length of a head, in parts of the mean head of the tables."""
    return anatomy.half_width / MEAN_HALF_WIDTH, anatomy.half_length / MEAN_HALF_LENGTH


def place(
    shapes: Iterable[Ellipsoid],
    anatomy: Anatomy,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    uneven: float = 1.0,
) -> tuple[Ellipsoid, ...]:
    """Put the shapes of a table into a head: on both sides, never quite alike.

    Args:
        shapes: A table; a shape with `x` other than 0 stands for a pair.
        anatomy: The patient.
        scale: Factors of the radii along x and y.
        uneven: Factor of the patient's asymmetry.
    """
    wide, long = size_of(anatomy)
    placed = []
    for shape, larger in zip(shapes, cycle(anatomy.asymmetry)):
        for side in (1.0, -1.0) if shape.x else (1.0,):
            size = 1.0 + side * uneven * larger
            placed.append(
                shape._replace(
                    x=side * shape.x * wide,
                    y=shape.y * long + 20.0 * side * larger,
                    x_radius=shape.x_radius * scale[0] * size,
                    y_radius=shape.y_radius * scale[1] * size,
                    turn=side * shape.turn,
                )
            )
    return tuple(placed)


FACE = (
    Ellipsoid(78, 14, -4, 2.6, 13, 24, -14, 5),  # ear
    Ellipsoid(31, -45, 8, 19.5, 27, 21, 16, 700),  # orbital wall
    Ellipsoid(26, -50, -25, 17, 20, 21, 0, 500),  # maxilla
    Ellipsoid(0, -52, 3, 14, 30, 25, 0, 450, 420),  # ethmoid
    Ellipsoid(0, -22, 0, 18, 14, 16, 0, 600),  # sphenoid
    Ellipsoid(9, -79, 28, 12, 6, 11, 25, 700),  # frontal bone
    Ellipsoid(0, -82, 8, 5, 4, 14, 0, 600),  # nasal bone
    Ellipsoid(53, -42, -8, 4, 17, 6, -15, 1100),  # zygomatic arch
    Ellipsoid(47, -16, -34, 4.5, 13, 14, 15, 1200),  # mandible
    Ellipsoid(32, -50, 8, 17.5, 29, 18.5, 16, -90),  # orbital fat
    Ellipsoid(27, -44, 8, 2.4, 17, 3.5, 14, 35),  # optic nerve
    Ellipsoid(18, -50, 8, 2, 16, 5, 3, 50),  # medial rectus
    Ellipsoid(41, -46, 8, 2, 16, 5, 32, 50),  # lateral rectus
    Ellipsoid(33, -63, 8, 12.6, 12.6, 12.6, 0, 50),  # sclera
    Ellipsoid(33, -63, 8, 11.3, 11.3, 11.3, 0, 12),  # vitreous
    Ellipsoid(33, -72.5, 8, 4.5, 1.9, 4.5, 0, 80),  # lens
)
"""Below the dome."""

SINUSES = (
    Ellipsoid(26, -50, -25, 15.5, 18, 18, 0, -980),  # maxillary
    Ellipsoid(6.5, -52, 2, 5.3, 26, 21, 4, -700, 380),  # ethmoid
    Ellipsoid(7, -23, 0, 6.6, 10.5, 12, 0, -980),  # sphenoid
    Ellipsoid(5, -62, -24, 4, 26, 15, 0, -850),  # nose
    Ellipsoid(0, -8, -45, 11, 9, 20, 0, -980),  # pharynx
    Ellipsoid(9, -79, 28, 9, 3.6, 9, 25, -980),  # frontal
)
"""Air in the face, scaled by `Anatomy.sinus`."""

BASE = (
    Ellipsoid(34, 6, 4, 26, 8, 13, 32, 1300, 60),  # petrous pyramid
    Ellipsoid(54, 18, 2, 13, 11, 16, 20, 700, 60),  # its base
    Ellipsoid(57, 24, -6, 10, 15, 20, 0, 450, 420),  # mastoid
    Ellipsoid(0, -4, -8, 11, 6, 18, 0, 550),  # clivus
    Ellipsoid(19, 14, -34, 8, 10, 12, 20, 900),  # condyle and first vertebra
    Ellipsoid(64, 12, -2, 14, 3, 3, 0, -950),  # ear canal
    Ellipsoid(41, 7, 3, 2.2, 2.2, 2.5, 0, 80),  # inner ear
)
"""Bone of the skull base below the floor of the brain's room."""

CISTERNS = (
    Ellipsoid(0, -9, 27, 8, 6, 8),  # suprasellar
    Ellipsoid(10, -12, 28, 9, 2.2, 7, 30),  # its arms
    Ellipsoid(13, 12, 30, 2.2, 12, 9, -25),  # ambient
    Ellipsoid(0, 25, 34, 9, 2.6, 7),  # quadrigeminal
    Ellipsoid(0, 2, 8, 13, 2.6, 16),  # prepontine
    Ellipsoid(0, 18, -26, 15, 13, 12),  # great cistern
    Ellipsoid(44, -12, 36, 13, 2.2, 14, 40),  # sylvian
    Ellipsoid(38, -2, 48, 2, 15, 12, -10),  # insular
)
"""Water outside the brain, wider with atrophy."""

BRAINSTEM = (
    Ellipsoid(0, 11, 4, 15, 11, 22, hu=30),  # pons, midbrain
    Ellipsoid(0, 13, -24, 8, 6.5, 20, hu=30),  # medulla, cord
)
"""Inside the cisterns."""

VENTRICLES = (
    Ellipsoid(9, -31, 58, 4, 13, 13, -22),  # frontal horn
    Ellipsoid(11, -3, 73, 5, 30, 9, -8),  # body
    Ellipsoid(24, 27, 58, 5.5, 10, 13, -20),  # atrium
    Ellipsoid(26, 43, 55, 3, 12, 6, 8),  # occipital horn
    Ellipsoid(33, 4, 32, 2, 9, 4.5, 15),  # temporal horn
    Ellipsoid(0, -4, 48, 2.4, 14, 11),  # third
    Ellipsoid(0, 31, 7, 6, 5, 11),  # fourth
)
"""Water inside the brain, wider with atrophy."""

NUCLEI = (
    Ellipsoid(15, -24, 60, 4.5, 12, 13, -18, GREY_HU),  # caudate
    Ellipsoid(25, -7, 51, 7, 17, 12, -12, GREY_HU),  # lentiform
    Ellipsoid(11, 13, 53, 8.5, 13, 10, 20, GREY_HU),  # thalamus
)
"""Deep grey matter."""

DARK_BAR = (Ellipsoid(0, 6, 2, 30, 4, 9, 0, 18),)
"""The dark bar between the petrous bones, from beam hardening."""

CALCIFICATIONS = (
    Ellipsoid(24, 29, 57, 2.6, 4, 5),  # choroid plexus
    Ellipsoid(0, 21, 48, 2.4, 2.2, 3.5),  # pineal gland
)
"""Painted with the HU of `Anatomy.calcified_hu`, where that is not 0."""


def scalp_table(anatomy: Anatomy) -> Field:
    """HU over the depth under the skin: skin, fat, muscle."""
    scalp_mm = anatomy.scalp
    knots = np.maximum.accumulate((0.0, 1.5, 2.2, scalp_mm - 1.4, scalp_mm - 0.4))
    return make_table(knots.tolist(), (SKIN_HU, SKIN_HU, FAT_HU, FAT_HU, MUSCLE_HU))


def bone_table(anatomy: Anatomy, height: float) -> Field:
    """HU over the depth in the skull: outer or inner table, diploe.

    Args:
        anatomy: The patient.
        height: Of the slice, mm.
    """
    bone_hu = anatomy.bone_hu * (0.75 if height < BASE_TOP_MM else 1.0)
    return make_table((0.0, 1.6, 2.8, 6.0), [bone_hu * p for p in (1, 1, 0.55, 0.5)])


def brain_table(anatomy: Anatomy, height: float) -> Field:
    """HU over the distance to the nearest water: water, grey, white.

    Args:
        anatomy: The patient.
        height: Of the slice, mm.
    """
    half_mm = 0.1 + 0.8 * anatomy.atrophy
    # A tight sulcus is thinner than a pixel: its water shows only in part.
    filled = min(0.9, 0.2 + anatomy.atrophy)
    sulcus_hu = GREY_HU + filled * (CSF_HU - GREY_HU)
    ribbon_mm = 3.2 if height > 20.0 else 2.0  # the cerebellum's folia are finer
    knots = (half_mm, half_mm + 1.4, half_mm + ribbon_mm, half_mm + ribbon_mm + 5.0)
    return make_table(knots, (sulcus_hu, GREY_HU, GREY_HU, WHITE_HU))


class Outlines(NamedTuple):
    """The head's layers in a slice: radii over the angle, mm, shape (A,)."""

    skin_A: Field
    skull_A: Field
    """Outside of the skull."""
    brain_A: Field
    """The brain's room."""
    slope: float
    """How fast the skull narrows upwards, mm in each mm."""


def outlines(
    anatomy: Anatomy, height: float, *, roll: float = 0.0, pitch: float = 0.0
) -> Outlines:
    """Compute the outlines of a head in an oblique slice.

    Args:
        anatomy: The patient.
        height: Of the slice at the head's axis, mm.
        roll: Rise of the slice along x, mm in each mm.
        pitch: Rise of the slice along y, mm in each mm.
    """
    cos_A, sin_A = np.cos(ANGLE_A), np.sin(ANGLE_A)
    wide_A = anatomy.half_width * (1.0 + 0.07 * sin_A)  # broader at the back
    head_A = 1.0 / np.sqrt((cos_A / wide_A) ** 2 + (sin_A / anatomy.half_length) ** 2)
    for order, (amplitude, phase) in enumerate(anatomy.harmonics, start=2):
        head_A *= 1.0 + amplitude / (order - 1) * np.cos(order * ANGLE_A + phase)

    # The temporal muscle is thickest a little before the ears.
    temple_A = np.exp(-(((np.arctan2(sin_A, np.abs(cos_A)) + 0.3) / 0.4) ** 2))
    muscle_A = 6.0 * temple_A * np.clip((70.0 - height) / 50.0, 0.0, 1.0)
    bone_A = head_A - anatomy.scalp - muscle_A
    thick_A = anatomy.skull * (1.0 - 0.35 * cos_A**2 - 0.1 * sin_A)
    bone_top = anatomy.vertex - anatomy.scalp
    rise_A = (roll * cos_A + pitch * sin_A) * head_A
    size_A = _dome(np.full(NUM_ANGLES, height), bone_top)
    for _ in range(3):  # where the plane meets the dome
        size_A = 0.5 * (size_A + _dome(height + rise_A * size_A, bone_top))
    height_A = height + rise_A * size_A
    skin_A = head_A * _dome(height_A, anatomy.vertex)
    skull_A = bone_A * _dome(height_A, bone_top)
    brain_A = (bone_A - thick_A) * _dome(height_A, bone_top - anatomy.skull)
    nose_A = 14.0 * np.exp(-(((ANGLE_A - 1.5 * np.pi) / 0.13) ** 2))
    skin_A += nose_A * np.clip((5.0 - height_A) / 15.0, 0.0, 1.0)
    narrowing = _dome(height - 2.0, bone_top) - _dome(height + 2.0, bone_top)
    return Outlines(
        skin_A=skin_A.astype(np.float32),
        skull_A=skull_A.astype(np.float32),
        brain_A=brain_A.astype(np.float32),
        slope=anatomy.half_width * float(narrowing) / 4.0,
    )


def _dome(height: Any, vertex: float) -> Any:
    """Size of an outline at a height, 1 where it is widest."""
    part = np.clip((height - 35.0) / (vertex - 35.0), 0.0, 1.0)
    below = np.minimum(0.0016 * (height - 35.0), 0.0)
    return np.sqrt(1.0 - part**2.4) + below
