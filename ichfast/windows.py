"""CT display windows: the map from Hounsfield units to [0, 1].

A window is applied in two ways, and tests hold them equal: `apply_windows` is the
readable definition on HU; `window_table` tabulates the same function over every
number that the store can hold, for the DALI graph to look up.

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
"""The store keeps ``HU + HU_OFFSET``: air (-1000 HU) is 24, padding is 0."""

NUM_STORED_VALUES = 65_536
"""Number of values of a uint16, the type that the store keeps."""

MIN_WIDTH_HU = 1.0
"""Lower limit of a window's width, HU: the step of stored numbers.

Source:
    DICOM PS3.3 C.11.2.1.2.1.
"""

MAX_WINDOW_HU = 1e6
"""Upper limit of a width and of a center's distance from 0, HU; far beyond the 31,743
that a store can hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A display window, in DICOM's terms.

    ``Window(center=40, width=80)`` is the brain window: 0 HU and below is
    black, 80 HU and above is white.

    Example:
        >>> import ichfast
        >>> ichfast.Window(center=40, width=80)
        Window(center=40, width=80, shape='linear')
    """

    center: float
    """(0028,1050) Window Center, HU, from ``-MAX_WINDOW_HU`` to ``MAX_WINDOW_HU``."""

    width: float
    """(0028,1051) Window Width, HU, from `MIN_WIDTH_HU` to `MAX_WINDOW_HU`."""

    shape: str = "linear"
    """``linear`` or ``sigmoid``: (0028,1056) VOI LUT Function."""

    def __post_init__(self) -> None:
        if not are_windows(self.center, self.width):
            raise WindowError(
                f"a window is {MIN_WIDTH_HU:g} to {MAX_WINDOW_HU:,.0f} HU wide and its "
                f"center at most that far from 0; got width {self.width:g} and "
                f"center {self.center:g}"
            )
        if self.shape not in ("linear", "sigmoid"):
            raise WindowError(
                f"window shape is 'linear' or 'sigmoid', got {self.shape!r}"
            )


def are_windows(
    center: float | npt.NDArray[np.float64], width: float | npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Whether centers and widths are in range.

    Args:
        center: HU, any shape.
        width: HU, of a shape that broadcasts with `center`.

    Returns:
        bool, of the shape they broadcast to; False for NaN.
    """
    center_fits: npt.NDArray[np.bool_] = np.less_equal(np.abs(center), MAX_WINDOW_HU)
    return (
        center_fits
        & np.greater_equal(width, MIN_WIDTH_HU)
        & np.less_equal(width, MAX_WINDOW_HU)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """A model's input is ``(value - mean) / std`` of the windowed value in [0, 1]."""

    mean: tuple[float, ...]
    """One number per channel."""

    std: tuple[float, ...]
    """One number per channel, greater than zero."""

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise WindowError(
                "normalization has a mean and a std above 0 for each channel, got "
                f"{self.mean} and {self.std}"
            )


PRESETS: dict[str, Window] = {
    "brain": Window(center=40, width=80),
    "subdural": Window(center=80, width=200),
    "bone": Window(center=600, width=2800),
    "soft": Window(center=40, width=380),
    "stroke": Window(center=32, width=8),
}
"""Windows by name. To add a preset, add a line here.

Source:
    brain, subdural, soft: the three channels of the competition's 2nd and 11th
    place; bone 600/2800 and stroke 32/8: fastai's medical imaging windows.
"""


def parse_window(text: str) -> Window:
    """Make a window from a preset's name or from ``CENTER/WIDTH`` in HU.

    Args:
        text: such as ``brain``, ``40/80`` or ``40/80/sigmoid``.

    Raises:
        WindowError: the text is neither a known name nor numbers, or is out of range.

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

    This is the readable definition. `ichfast.loading.shading` and the DALI graph in
    `ichfast.loading.graph` are fast; `tests/loading/test_shading.py` and
    `tests/loading/test_loader_reference.py` compare them with it.

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
    """Map CT numbers to [0, 1] by one window, or by one window per slice.

    Args:
        hu: CT numbers in HU, any shape.
        center: HU, of a shape that broadcasts with `hu`.
        width: HU, of a shape that broadcasts with `hu`; greater than zero.
        shape: ``linear`` or ``sigmoid``.

    Returns:
        float32, of the shape they broadcast to.
    """
    distance = (hu - center).astype(np.float32) / width
    if shape == "sigmoid":
        with np.errstate(over="ignore"):  # far below the window: 1 / inf is 0
            return 1.0 / (1.0 + np.exp(-4.0 * distance))
    return np.clip(distance + 0.5, 0.0, 1.0)


def window_table(window: Window, *, mean: float, std: float) -> npt.NDArray[np.float32]:
    """Tabulate windowing and normalization over every stored number.

    Args:
        window: the window to tabulate.
        mean: subtracted from the windowed value in [0, 1].
        std: divisor after that; greater than zero.

    Returns:
        Shape (65536,), float32: entry ``s`` belongs to ``s - HU_OFFSET`` HU.

    Raises:
        WindowError: `std` is not greater than zero.
    """
    if not std > 0:
        raise WindowError(f"the normalization's std must be above 0, got {std}")
    hu_11V = np.arange(NUM_STORED_VALUES, dtype=np.float32)[None, None] - HU_OFFSET
    value_V = apply_windows(hu_11V, [window])[0, 0, :, 0]
    table_V: npt.NDArray[np.float32] = (value_V - np.float32(mean)) / np.float32(std)
    return table_V
