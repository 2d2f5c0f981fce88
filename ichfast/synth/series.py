"""What is decided before the first slice of a series is drawn.

Patients, scanners, kernels and the way the head lies are drawn from a seed, one series
after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np

from ichfast.synth.anatomy import Anatomy, draw_anatomy
from ichfast.synth.canvas import Grid
from ichfast.synth.scanner import (
    KERNELS,
    SCANNERS,
    THICK_MM,
    WRAPPED_SCANNER,
    Kernel,
    Scanner,
)

RARE_SHAPES = ((638, 490), (436, 436), (408, 374), (464, 464), (666, 512), (768, 768))
"""Shapes of RSNA's slices that are not 512x512, rows and columns."""

RARE_SHAPE_EVERY, WRAPPED_EVERY = 80, 125
"""One of 80 series has a rare shape, one of 125 has wrapped 12-bit pixels (0.8 %)."""

MIN_THICK_MM = 2.5
"""Thinnest slice, mm; the thickest has `scanner.THICK_MM`."""


class Series(NamedTuple):
    """A series: the patient, the scanner, and how the head lies in it."""

    number: int
    patient: int
    anatomy: Anatomy
    scanner: Scanner
    kernel: Kernel
    is_helical: bool
    is_implicit: bool
    grid: Grid
    heights: tuple[float, ...]
    tilt: float
    """Angle of the gantry, rad."""
    noise_hu: float
    holder_mm: float
    """Radius of the head holder."""


def thicknesses(heights: Sequence[float]) -> list[float]:
    """Thickness of each slice, mm: the distance to the next one, in usual limits."""
    spacing_mm = np.diff(heights, append=heights[-1] + THICK_MM)
    return [float(each) for each in np.clip(spacing_mm, MIN_THICK_MM, THICK_MM)]


def plan(num_slices: int, seed: int, size: int, *, quirks: bool) -> Iterator[Series]:
    """Decide one series after the other until they hold all slices.

    Args:
        num_slices: Slices of all series together.
        seed: 0 or more.
        size: Rows and columns of a slice.
        quirks: Some series have a rare shape, some have wrapped pixels.
    """
    number, left = 0, num_slices
    for patient in count():
        rng = np.random.default_rng((seed, 0, patient))
        anatomy = draw_anatomy(rng)
        for _ in range(int(rng.choice((1, 2, 3), p=(0.87, 0.1, 0.03)))):
            is_rare = quirks and number % RARE_SHAPE_EVERY == 7
            is_wrapped = quirks and number % WRAPPED_EVERY == 3
            heights = _draw_heights(rng, anatomy, left)
            yield Series(
                number=number,
                patient=patient,
                anatomy=anatomy,
                scanner=WRAPPED_SCANNER if is_wrapped else _draw_scanner(rng),
                kernel=_draw_kernel(rng),
                is_helical=bool(rng.random() < 0.2),
                is_implicit=bool(rng.random() < 0.4),
                grid=_draw_grid(rng, number, size, is_rare=is_rare),
                heights=heights,
                tilt=float(rng.normal(0.26, 0.1) if rng.random() < 0.55 else 0.0),
                noise_hu=float(rng.uniform(3.0, 5.0)),
                holder_mm=float(rng.uniform(106.0, 118.0)),
            )
            number += 1
            left -= len(heights)
            if left == 0:
                return


def _draw_scanner(rng: np.random.Generator) -> Scanner:
    share = [scanner.share for scanner in SCANNERS]
    return SCANNERS[rng.choice(len(SCANNERS), p=share)]


def _draw_kernel(rng: np.random.Generator) -> Kernel:
    kernels = list(KERNELS.values())
    return kernels[rng.choice(len(kernels), p=[kernel.share for kernel in kernels])]


def _draw_grid(
    rng: np.random.Generator, number: int, size: int, *, is_rare: bool
) -> Grid:
    view_mm = float(rng.choice((230.0, 240.0, 250.0), p=(0.2, 0.2, 0.6)))
    rows, columns = size, size
    if is_rare:
        shape = RARE_SHAPES[number // RARE_SHAPE_EVERY % len(RARE_SHAPES)]
        rows, columns = (pixels * size // 512 for pixels in shape)
    return Grid(
        rows=rows,
        columns=columns,
        spacing_mm=view_mm / min(rows, columns),
        rotation=float(rng.normal(0.0, 0.08)),
        x_mm=float(rng.normal(0.0, 3.0)),
        y_mm=float(rng.normal(-4.0, 5.0)),
        roll=float(rng.normal(0.0, 0.05)),
        pitch=float(np.clip(rng.normal(0.0, 0.1), -0.2, 0.2)),
    )


def _draw_heights(
    rng: np.random.Generator, anatomy: Anatomy, max_slices: int
) -> tuple[float, ...]:
    """Draw the slices' heights from the bottom up, mm; most are 5 mm apart."""
    bottom = rng.uniform(-28.0, -14.0)
    top = anatomy.vertex + rng.uniform(-6.0, 6.0)
    spacing_mm = rng.choice((5.0, 4.0), p=(0.8, 0.2))
    heights = np.arange(bottom, top, spacing_mm)
    if rng.random() < 0.25:  # thinner slices through the skull base
        fine = np.arange(bottom, 30.0, 3.0)
        heights = np.concatenate((fine, np.arange(fine[-1] + spacing_mm, top, 5.0)))
    if len(heights) > max_slices:  # the last series: fewer slices, still a whole head
        heights = np.linspace(bottom, top, max_slices + 2)[1:-1]
    return tuple(heights.tolist())
