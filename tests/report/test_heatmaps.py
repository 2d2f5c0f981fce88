"""A heat map has the proportion of its slice, and is clear where it is zero."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from ichfast.report.heatmaps import HEATMAP_SIDE, MAX_OPACITY, heatmap_png


def drawn(map_hw: npt.NDArray[np.float32], shape: tuple[int, int]) -> Image.Image:
    return Image.open(io.BytesIO(heatmap_png(map_hw, shape))).convert("RGBA")


def test_a_map_has_the_proportion_of_its_slice() -> None:
    ones = np.ones((3, 3), dtype=np.float32)
    assert drawn(ones, (512, 512)).size == (HEATMAP_SIDE, HEATMAP_SIDE)
    assert drawn(ones, (512, 256)).size == (HEATMAP_SIDE // 2, HEATMAP_SIDE)


def test_a_map_is_clear_at_zero_and_strongest_at_its_maximum() -> None:
    map_hw = np.zeros((2, 2), dtype=np.float32)
    map_hw[0, 1] = 1e-3
    alpha_HW = np.asarray(drawn(map_hw, (512, 512)))[..., 3]
    assert alpha_HW[0, -1] == round(255 * MAX_OPACITY)
    assert alpha_HW[-1, 0] == 0
    assert np.unravel_index(alpha_HW.argmax(), alpha_HW.shape)[0] == 0


def test_a_map_of_zeros_is_clear() -> None:
    alpha_HW = np.asarray(drawn(np.zeros((3, 4), dtype=np.float32), (9, 12)))[..., 3]
    assert not alpha_HW.any()


def test_a_map_takes_few_bytes() -> None:
    rng = np.random.default_rng(0)
    assert len(heatmap_png(rng.random((16, 16), dtype=np.float32), (512, 512))) < 2000
