"""CT display windows: the map from Hounsfield units to [0, 1].

A window is applied in two ways that tests hold equal: `apply_windows` is the
readable definition on HU, `window_table` is the same function tabulated over
every number the store can hold, which is what the DALI graph looks up on a GPU.

Shape letters in this file:
    B  slices in the batch    H  rows    W  columns    C  windows (channels)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.errors import WindowError

HU_OFFSET = 1024
"""The store keeps ``HU + HU_OFFSET``, so air is 24 and padding 0."""

NUM_STORED_VALUES = 65_536
"""Every value of a uint16."""

MIN_WIDTH_HU = 1.0
"""No window is narrower.

Source:
    DICOM PS3.3 C.11.2.1.2.1; what is stored has steps of 1 HU.
"""

MAX_WINDOW_HU = 1e6
"""Of a center, to both sides, and of a width; far beyond what a store can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A display window, with DICOM's own words for its two numbers.

    ``Window(center=40, width=80)`` is the brain window: 0 HU and below is
    black, 80 HU and above is white.
    """

    center: float
    """(0028,1050) Window Center, HU. From minus to plus `MAX_WINDOW_HU`."""

    width: float
    """(0028,1051) Window Width, HU. From `MIN_WIDTH_HU` to `MAX_WINDOW_HU`."""

    shape: str = "linear"
    """``linear`` or ``sigmoid``: (0028,1056) VOI LUT Function."""

    def __post_init__(self) -> None:
        if not are_windows(self.center, self.width):
            raise WindowError(
                f"a window is {MIN_WIDTH_HU:g} to {MAX_WINDOW_HU:,.0f} HU wide, its "
                f"center as far from 0 at most; got width {self.width:g} and "
                f"center {self.center:g}"
            )
        if self.shape not in ("linear", "sigmoid"):
            raise WindowError(
                f"window shape is 'linear' or 'sigmoid', got {self.shape!r}"
            )


def are_windows(
    center: float | npt.NDArray[np.float64], width: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Whether centers and widths, HU, make windows; NaN makes none."""
    center_fits: npt.NDArray[np.bool_] = np.less_equal(np.abs(center), MAX_WINDOW_HU)
    return (
        center_fits
        & np.greater_equal(width, MIN_WIDTH_HU)
        & np.less_equal(width, MAX_WINDOW_HU)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """What turns a windowed value in [0, 1] into a model's input, per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


PRESETS: dict[str, Window] = {
    "brain": Window(center=40, width=80),
    "subdural": Window(center=80, width=200),
    "bone": Window(center=600, width=2800),
    "soft": Window(center=40, width=380),
    "stroke": Window(center=32, width=8),
}
"""Windows by name.

Source:
    brain, subdural, soft: the three channels of the competition's 2nd and 11th
    place; bone 600/2800 and stroke 32/8: fastai's medical imaging windows.
"""


def parse_window(text: str) -> Window:
    """Make a window from a preset's name or from ``CENTER/WIDTH`` in HU.

    Args:
        text: such as ``brain``, ``40/80`` or ``40/80/sigmoid``.

    Raises:
        WindowError: neither a known name nor numbers.

    Example:
        >>> parse_window("40/80") == PRESETS["brain"]
        True
    """
    if text in PRESETS:
        return PRESETS[text]
    center, _, rest = text.partition("/")
    width, _, shape = rest.partition("/")
    try:
        return Window(center=float(center), width=float(width), shape=shape or "linear")
    except ValueError as error:
        raise WindowError(
            f"unknown window {text!r}; use one of {', '.join(PRESETS)} "
            "or CENTER/WIDTH in HU such as 40/80"
        ) from error


def apply_windows(
    hu_BHW: npt.NDArray[np.generic], windows: Sequence[Window]
) -> npt.NDArray[np.float32]:
    """Window a batch of slices, one output channel per window.

    This is the readable definition; `ichfast.loading.shading` and the DALI graph in
    `ichfast.loading.graph` are the fast ones, which `tests/loading/test_shading.py` and
    `tests/loading/test_loader_reference.py` hold to it.

    Args:
        hu_BHW: CT numbers in HU, shape (B, H, W), any real dtype. Not changed.
        windows: C windows. Their order is the channel order.

    Returns:
        Shape (B, H, W, C), float32, C-contiguous, every value in [0, 1].

    Raises:
        WindowError: `windows` is empty, or `hu_BHW` is not three-dimensional.

    Source:
        DICOM PS3.3 C.11.2.1.3.2 (LINEAR_EXACT) and C.11.2.1.3.1 (SIGMOID), with
        output range [0, 1].
    """
    if not windows:
        raise WindowError("apply_windows needs at least one window, got none")
    if hu_BHW.ndim != 3:
        raise WindowError(f"expected shape (B, H, W), got {hu_BHW.shape}")

    out_BHWC = np.empty((*hu_BHW.shape, len(windows)), dtype=np.float32)
    for channel, window in enumerate(windows):
        out_BHWC[..., channel] = window_values(
            hu_BHW, window.center, window.width, window.shape
        )
    return out_BHWC


def window_values(
    hu: npt.NDArray[Any],
    center: float | npt.NDArray[np.float32],
    width: float | npt.NDArray[np.float32],
    shape: str,
) -> npt.NDArray[np.float32]:
    """Values in [0, 1] of CT numbers through one window, or through several.

    Args:
        hu: CT numbers in HU, any shape.
        center: HU; it and the next broadcast with `hu`.
        width: HU, greater than zero.
        shape: ``linear`` or ``sigmoid``.

    Returns:
        float32, of the shape they broadcast to.
    """
    distance = (hu - center).astype(np.float32) / width
    if shape == "sigmoid":
        with np.errstate(over="ignore"):  # far below it: 1 / inf is 0
            return 1.0 / (1.0 + np.exp(-4.0 * distance))
    return np.clip(distance + 0.5, 0.0, 1.0)


def window_table(window: Window, *, mean: float, std: float) -> npt.NDArray[np.float32]:
    """Tabulate windowing and normalisation over every stored number.

    Args:
        window: the window to tabulate.
        mean: subtracted from the windowed value in [0, 1].
        std: divides what remains. Greater than zero.

    Returns:
        Shape (65536,), float32: entry ``s`` belongs to ``s - HU_OFFSET`` HU.

    Raises:
        WindowError: `std` is not greater than zero.
    """
    if not std > 0:
        raise WindowError(f"the normalisation's std must be above 0, got {std}")
    hu_11V = np.arange(NUM_STORED_VALUES, dtype=np.float32)[None, None] - HU_OFFSET
    value_V = apply_windows(hu_11V, [window])[0, 0, :, 0]
    table_V: npt.NDArray[np.float32] = (value_V - np.float32(mean)) / np.float32(std)
    return table_V
