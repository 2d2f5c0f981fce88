"""The preview shows the slices of training and the parameters of each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ichfast.augment import geometry
from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import draw
from ichfast.errors import IchfastError
from ichfast.recipes.resolve import resolve_recipe
from ichfast.report.pictures import augmentation_sheet
from ichfast.report.preview import LEGEND, _corners, _describe, write_preview


def caption(**laws: float | tuple[float, float]) -> str:
    """The caption of slice 0 of 96x96, shown at 48x48."""
    parameters = draw(
        AugmentConfig(affine_probability=1.0, zoom_probability=1.0, **laws),  # type: ignore[arg-type]
        seed=1,
        epoch=0,
        slices_B=np.array([0]),
        source_shape_B2=np.array([[96, 96]]),
        size=48,
    )
    seen_33 = np.diag([0.5, 0.5, 1.0]) @ parameters.matrix_B33[0].astype(np.float64)
    return _describe(parameters, 0, seen_33, 48)


def test_the_caption_lists_the_parameters() -> None:
    assert caption() == "turned 0 deg, zoom 1.00"
    assert caption(min_zoom=1.3, max_zoom=1.3).startswith("turned 0 deg, zoom 1.30\n")
    centred = caption(min_zoom=1.3, max_zoom=1.3, zoom_focus=(0.5, 0.5))
    assert centred == "turned 0 deg, zoom 1.30"
    assert caption(flip_probability=1.0).endswith("\nmirrored")
    assert "warped" in caption(max_warp=0.2)
    assert "moved" in caption(max_shift=0.5)
    assert re.match("turned (0|-?90|-?180) deg", caption(dihedral_probability=1.0))
    assert "light" in caption(max_lighting=0.2, lighting_probability=1.0)
    assert "HU" in caption(window_jitter=(7.0, 15.0))
    assert "holes of" in caption(cutout_probability=1.0)
    assert caption(depth_flip_probability=1.0).endswith("\nabove and below swapped")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exp-30", "fast", "slab-maxvit-512"])
def test_a_preview_is_a_picture_that_changes_with_the_epoch(
    tiny_store_path: Path, tmp_path: Path, name: str
) -> None:
    recipe = resolve_recipe(name, size=48, device_type="cpu")
    for epoch in (0, 1):
        write_preview(tiny_store_path, recipe, tmp_path / f"{epoch}.png", epoch=epoch)
    first, second = (
        np.asarray(Image.open(tmp_path / f"{epoch}.png").convert("RGB"))
        for epoch in (0, 1)
    )
    assert first.shape == second.shape
    assert first.shape[1] == 8 * 272
    row_height = int(first.shape[0] * 0.375)
    below = slice(int(first.shape[0] * 0.06) + row_height + 5, None)
    assert (first[below] != second[below]).any()


@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_title_fits_above_the_slices(count: int) -> None:
    values_BSSC = np.zeros((count, 8, 8, 1))
    title = f"exp-30, epoch 0, brain+subdural+bone, 224 px: {LEGEND}"
    sheet = augmentation_sheet(
        values_BSSC,
        values_BSSC,
        np.zeros((count, 4, 2)),
        [""] * count,
        title=title,
    )
    sheet.draw_without_rendering()
    box = sheet.texts[0].get_window_extent()
    assert sheet.bbox.x0 <= box.x0 < box.x1 <= sheet.bbox.x1
    assert sheet.axes[0].bbox.y1 <= box.y0 < box.y1 <= sheet.bbox.y1


def test_the_outline_marks_what_is_seen_below() -> None:
    zoom = geometry.zoom(np.array([2.0]), np.array([[1.0, 1.0]]))
    seen_33 = geometry.to_pixels([zoom], np.array([[48, 48]]), 48)[0]
    found = _corners(seen_33.astype(np.float64), 48)
    np.testing.assert_allclose(found, [(24, 24), (48, 24), (48, 48), (24, 48)])


def test_a_picture_that_cannot_be_written_is_an_error(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    recipe = resolve_recipe("fast", size=48, device_type="cpu")
    with pytest.raises(IchfastError, match="cannot write"):
        write_preview(tiny_store_path, recipe, tmp_path / "file" / "p.png", epoch=0)
