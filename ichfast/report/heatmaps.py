"""Heat maps: class activation maps in colours, from purple to yellow.

In a report a heat map is a small PNG, transparent where the map is zero. The browser
stretches it over the picture of the slice.

Shape letters: H rows, W columns, h and w rows and columns of the model's feature map.
"""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

HEATMAP_SIDE = 32
"""Longest side of a heat map, in pixels; feature maps have 3 to 16."""

NUM_LEVELS = 32
"""Colours of a heat map."""

MAX_OPACITY = 0.55
"""Opacity at the maximum, so that the slice stays visible."""


def share_of_maximum(
    map_hw: npt.NDArray[np.float32], rows: int, columns: int
) -> npt.NDArray[np.float32]:
    """Divide a map by its maximum, and resize it.

    Args:
        map_hw: shape (h, w), at least zero.
        rows: H.
        columns: W.

    Returns:
        Shape (H, W), float32, in [0, 1].
    """
    share_hw = map_hw / max(float(map_hw.max()), np.finfo(np.float32).tiny)
    smooth = Image.fromarray(share_hw.astype(np.float32))
    return np.asarray(smooth.resize((columns, rows), Image.Resampling.BILINEAR))


def heatmap_png(map_hw: npt.NDArray[np.float32], shape: tuple[int, int]) -> bytes:
    """Colour a map, scaled to its own maximum.

    Args:
        map_hw: shape (h, w), at least zero. It covers the whole slice.
        shape: rows and columns of the slice; the picture has their proportion.

    Returns:
        A PNG with a palette, transparent where the map is zero.
    """
    scale = HEATMAP_SIDE / max(shape)
    rows, columns = (max(round(side * scale), 1) for side in shape)
    share_HW = share_of_maximum(map_hw, rows, columns)
    level_HW = np.rint(share_HW * (NUM_LEVELS - 1)).astype(np.uint8)
    picture = Image.fromarray(level_HW, mode="P")
    colors, opacities = _palette()
    picture.putpalette(colors)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=opacities, optimize=True)
    return buffer.getvalue()


def _palette() -> tuple[bytes, bytes]:
    """Red, green and blue of each level, and the opacity of each level."""
    share = np.linspace(0.0, 1.0, NUM_LEVELS)
    colors = matplotlib.colormaps["plasma"](share, bytes=True)[:, :3]
    opacities = np.rint(255 * MAX_OPACITY * share).astype(np.uint8)
    return np.asarray(colors).tobytes(), opacities.tobytes()
