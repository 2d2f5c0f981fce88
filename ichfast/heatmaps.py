"""A class activation map as a small picture to lay over that of its slice.

Transparent where the map is zero, then purple to yellow. The picture has a few pixels
only: whoever shows it stretches it, smoothly, over the slice's.

Shape letters: h and w rows and columns of the map.
"""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_SIDE = 32
"""Pixels of the longest side; feature maps have 3 to 16."""

NUM_LEVELS = 32
MAX_OPACITY = 0.55


def heatmap_png(map_hw: npt.NDArray[np.float32], shape: tuple[int, int]) -> bytes:
    """Colour a map, scaled to its own maximum.

    Args:
        map_hw: shape (h, w), at least zero. It covers the whole slice.
        shape: rows and columns of the slice; the picture has their proportion.

    Returns:
        A PNG with a palette and transparency. All transparent where the map is zero.
    """
    scale = MAX_SIDE / max(shape)
    rows, columns = (max(round(side * scale), 1) for side in shape)
    share_hw = map_hw / max(float(map_hw.max()), np.finfo(np.float32).tiny)
    smooth = Image.fromarray(share_hw.astype(np.float32)).resize(
        (columns, rows), Image.Resampling.BILINEAR
    )
    level_HW = np.rint(np.asarray(smooth) * (NUM_LEVELS - 1)).astype(np.uint8)
    picture = Image.fromarray(level_HW, mode="P")
    colors, opacities = _palette()
    picture.putpalette(colors)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=opacities, optimize=True)
    return buffer.getvalue()


def _palette() -> tuple[bytes, bytes]:
    """Red, green and blue of each level; opacity of each level."""
    share = np.linspace(0.0, 1.0, NUM_LEVELS)
    colors = matplotlib.colormaps["plasma"](share, bytes=True)[:, :3]
    opacities = np.rint(255 * MAX_OPACITY * share).astype(np.uint8)
    return np.asarray(colors).tobytes(), opacities.tobytes()
