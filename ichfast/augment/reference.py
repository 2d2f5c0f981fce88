"""The NumPy reference of the DALI graph: applies drawn parameters slowly and readably.

The steps: halve while the source is at least twice the output (`halve`), resample in
perspective once (`resample`), then window each channel, change values, cut holes and
normalise (`shade`). Halving takes exact 2x2 means, as the store's small level does. The
resample reads 2x2 pixels, so it skips none as long as the source is below twice the
output.

A photometric augmentation is added in four files: its setting in `augment.config`, its
draw in `augment.parameters`, its arithmetic in `change_values` here, which
`loading.shading` calls too, and its feed and DALI step in `loading.graph`.

Shape letters: D slices of a slab, H rows, W columns, C windows, S output size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ichfast.augment.geometry import square, to_pixels
from ichfast.augment.parameters import Parameters
from ichfast.windows import HU_OFFSET, MIN_WIDTH_HU, Window, apply_windows

LOGIT_EPSILON = 1e-7
"""Lighting keeps values this far from 0 and 1, as fastai v1 does."""

Numbers = npt.NDArray[np.float32]


def apply_parameters(
    stored_HW: npt.NDArray[np.uint16],
    parameters: Parameters,
    row: int,
    *,
    size: int,
    windows: Sequence[Window],
    mean_C: Sequence[float],
    std_C: Sequence[float],
) -> npt.NDArray[np.float32]:
    """Apply the drawn parameters to one slice.

    Args:
        stored_HW: the slice, already halved; stored numbers. Not changed.
        parameters: drawn for a batch.
        row: the slice's row in `parameters`.
        size: side of the output, pixels.
        windows: C windows.
        mean_C: subtracted from each windowed channel.
        std_C: divides each channel after that.

    Returns:
        Shape (size, size, C), float32, normalised.
    """
    x_SS, y_SS = source_places(parameters.matrix_B33[row], size)
    warped_SS = np.rint(resample(stored_HW, x_SS, y_SS))
    return shade(
        warped_SS, parameters, row, windows=windows, mean_C=mean_C, std_C=std_C
    )


def apply_to_slab(
    stored_D: Sequence[npt.NDArray[np.uint16]],
    parameters: Parameters,
    row: int,
    *,
    size: int,
    windows: Sequence[Window],
    mean_C: Sequence[float],
    std_C: Sequence[float],
) -> npt.NDArray[np.float32]:
    """Apply the parameters of the middle slice to all slices of a slab.

    Args:
        stored_D: the slices, from the lowest to the highest, as `apply_parameters`
            takes one.
        parameters: drawn for a batch.
        row: the middle slice's row in `parameters`.
        size: side of the output, pixels.
        windows: C windows.
        mean_C: subtracted from each windowed channel.
        std_C: divides each channel after that.

    Returns:
        Shape (size, size, D * C), float32, normalised: all windows of the first slice,
        then those of the next.
    """
    order = -1 if parameters.is_depth_flipped_B[row] else 1
    return np.concatenate(
        [
            apply_parameters(
                stored_HW,
                parameters,
                row,
                size=size,
                windows=windows,
                mean_C=mean_C,
                std_C=std_C,
            )
            for stored_HW in stored_D[::order]
        ],
        axis=2,
    )


def halve(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Halve rows and columns; a pixel is the mean of four, with air beyond an edge."""
    rows, columns = stored_HW.shape
    padded_HW = np.pad(stored_HW, ((0, rows % 2), (0, columns % 2))).astype(np.float64)
    quarters = [padded_HW[y::2, x::2] for y in (0, 1) for x in (0, 1)]
    return np.rint(np.mean(quarters, axis=0)).astype(np.uint16)


def square_view(
    stored_HW: npt.NDArray[np.uint16], shape: tuple[int, int], aspect: float
) -> npt.NDArray[np.uint16]:
    """A slice as a square, whole and in its proportions, with air beside it.

    That is how a model sees it in validation, at another size.

    Args:
        stored_HW: the slice at any level; stored numbers. Not changed.
        shape: rows and columns of the slice at its own resolution.
        aspect: height of a pixel over its width; 1 for a square.

    Returns:
        Shape (S, S) of the longer side of `stored_HW`, in pixels.
    """
    size = max(stored_HW.shape)
    if aspect == 1.0 and stored_HW.shape == (size, size):
        return stored_HW
    square_133 = square(np.array([shape]), np.array([aspect]))
    matrix_133 = to_pixels([square_133], np.array([stored_HW.shape]), size)
    viewed_SS = resample(stored_HW, *source_places(matrix_133[0], size))
    return np.rint(viewed_SS).astype(np.uint16)


def source_places(
    matrix_33: npt.NDArray[np.float32], size: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Source coordinates of each output pixel.

    Args:
        matrix_33: maps an output pixel to a source pixel.
        size: side of the output, pixels.

    Returns:
        x and y, shape (size, size) each, in pixels; the centre of the first pixel is 0.
    """
    middle_S = np.arange(size) + 0.5
    x_SS, y_SS = np.meshgrid(middle_S, middle_S)
    place_3SS = np.tensordot(
        matrix_33.astype(np.float64), np.stack([x_SS, y_SS, np.ones_like(x_SS)]), 1
    )
    return place_3SS[0] / place_3SS[2] - 0.5, place_3SS[1] / place_3SS[2] - 0.5


def resample(
    stored_HW: npt.NDArray[np.uint16],
    x_SS: npt.NDArray[np.float64],
    y_SS: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Interpolate a slice bilinearly; pixels outside are air, 0.

    Args:
        stored_HW: stored numbers. Not changed.
        x_SS: columns to read at, in pixels; the centre of the first pixel is 0.
        y_SS: rows to read at.

    Returns:
        Stored numbers, shape (S, S), float64, not rounded.
    """
    padded_HW = np.pad(stored_HW.astype(np.float64), 1)
    rows, columns = padded_HW.shape
    x_SS = np.clip(x_SS + 1, 0, columns - 1 - 1e-9)
    y_SS = np.clip(y_SS + 1, 0, rows - 1 - 1e-9)
    left_SS, top_SS = x_SS.astype(int), y_SS.astype(int)
    across_SS, down_SS = x_SS - left_SS, y_SS - top_SS
    upper_SS = (
        padded_HW[top_SS, left_SS] * (1 - across_SS)
        + padded_HW[top_SS, left_SS + 1] * across_SS
    )
    lower_SS = (
        padded_HW[top_SS + 1, left_SS] * (1 - across_SS)
        + padded_HW[top_SS + 1, left_SS + 1] * across_SS
    )
    return upper_SS * (1 - down_SS) + lower_SS * down_SS


def shade(
    stored_SS: npt.NDArray[np.floating],
    parameters: Parameters,
    row: int,
    *,
    windows: Sequence[Window],
    mean_C: Sequence[float],
    std_C: Sequence[float],
) -> npt.NDArray[np.float32]:
    """Window, light, cut holes and normalise a resampled slice.

    Each value depends only on its own pixel, and increases with it.

    Args:
        stored_SS: stored numbers. Not changed.
        parameters: drawn for a batch.
        row: the slice's row in `parameters`.
        windows: C windows.
        mean_C: subtracted from each windowed channel.
        std_C: divides each channel after that.

    Returns:
        Shape (S, S, C), float32, normalised.
    """
    shifts = parameters.center_shift_B[row], parameters.width_shift_B[row]
    jittered = [jitter(window, *map(float, shifts)) for window in windows]
    image_SSC = apply_windows(stored_SS[None] - HU_OFFSET, jittered)[0]
    contrast, brightness = parameters.contrast_B[row], parameters.brightness_B[row]
    if contrast != 1.0 or brightness != 0.0:
        changes = {"contrast": contrast, "brightness": brightness}
        image_SSC = change_values(image_SSC, changes)
    air_C = apply_windows(np.full((1, 1, 1), -HU_OFFSET), windows)[0, 0, 0]
    for (top, left), (rows, columns) in zip(
        parameters.hole_corner_BM2[row].astype(int),
        parameters.hole_side_BM2[row].astype(int),
        strict=True,
    ):
        if rows:
            image_SSC[
                max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)
            ] = air_C
    return (image_SSC - np.asarray(mean_C, np.float32)) / np.asarray(std_C, np.float32)


def change_values(value: Numbers, drawn: Mapping[str, Numbers | np.float32]) -> Numbers:
    """Apply the photometric augmentations to windowed values.

    Args:
        value: in [0, 1], float32, any shape.
        drawn: parameters by the name of their feed in `loading.graph`. Each broadcasts
            with `value`; a missing one changes nothing.

    Returns:
        Values in [0, 1], float32.
    """
    if "contrast" in drawn:
        value = _light(value, drawn["contrast"], drawn["brightness"])
    return value


def _light(
    value: Numbers, contrast: Numbers | np.float32, brightness: Numbers | np.float32
) -> Numbers:
    """Change brightness, then contrast, in logit space, as fastai v1 does."""
    clipped = np.clip(value, LOGIT_EPSILON, 1.0 - LOGIT_EPSILON)
    logit = (np.log(clipped / (1.0 - clipped)) + brightness) * contrast
    with np.errstate(over="ignore"):  # 1 / inf is 0
        return 1.0 / (1.0 + np.exp(-logit))


def jitter(window: Window, center_shift: float, width_shift: float) -> Window:
    """Shift the center and the width of a window.

    Args:
        window: not changed.
        center_shift: added to the center, HU.
        width_shift: added to the width, HU; the result is at least `MIN_WIDTH_HU`.
    """
    return replace(
        window,
        center=window.center + center_shift,
        width=max(window.width + width_shift, MIN_WIDTH_HU),
    )
