"""Each matrix moves a slice as its name promises."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment import geometry
from ichfast.augment.geometry import count_halvings
from ichfast.augment.reference import resample, source_places

SIDE = 24
LETTER_HW = np.zeros((SIDE, SIDE), np.uint16)
LETTER_HW[4:20, 4:8] = LETTER_HW[4:8, 4:18] = LETTER_HW[10:14, 4:14] = 2000
"""The letter F, which every symmetry of the square but the identity changes."""


def moved(
    *steps: npt.NDArray[np.float64], source_HW: npt.NDArray[np.uint16] = LETTER_HW
) -> npt.NDArray[np.uint16]:
    """Resample a slice to `SIDE` pixels through the matrices of one slice."""
    matrix_B33 = geometry.to_pixels(steps, np.array([source_HW.shape]), SIDE)
    stored_SS = resample(source_HW, *source_places(matrix_B33[0], SIDE))
    return np.rint(stored_SS).astype(np.uint16)


def test_no_step_changes_nothing() -> None:
    np.testing.assert_array_equal(moved(), LETTER_HW)


def test_a_mirrored_slice_has_its_columns_in_reverse() -> None:
    found = moved(geometry.mirror(np.array([True])))
    np.testing.assert_array_equal(found, LETTER_HW[:, ::-1])
    np.testing.assert_array_equal(moved(geometry.mirror(np.array([False]))), LETTER_HW)


def test_the_eight_symmetries_are_the_squares() -> None:
    found = {moved(geometry.symmetry(np.array([k]))).tobytes() for k in range(8)}
    turned = [np.rot90(each, k) for each in (LETTER_HW, LETTER_HW.T) for k in range(4)]
    assert found == {each.tobytes() for each in turned}
    assert len(found) == 8
    np.testing.assert_array_equal(moved(geometry.symmetry(np.array([0]))), LETTER_HW)


def test_a_quarter_turn_goes_anticlockwise() -> None:
    found = moved(geometry.rotation(np.array([np.pi / 2])))
    np.testing.assert_array_equal(found, np.rot90(LETTER_HW))


def test_a_shift_goes_right_and_down_and_leaves_air() -> None:
    found = moved(geometry.shift(np.array([[3 / SIDE, 5 / SIDE]])))
    expected = np.zeros_like(LETTER_HW)
    expected[5:, 3:] = LETTER_HW[:-5, :-3]
    np.testing.assert_array_equal(found, expected)


def test_a_shift_after_a_zoom_is_not_enlarged() -> None:
    zoom = geometry.zoom(np.array([2.0]), np.array([[0.5, 0.5]]))
    shift = geometry.shift(np.array([[0.25, 0.0]]))
    np.testing.assert_array_equal(moved(zoom, shift)[:, 6:], moved(zoom)[:, :-6])


@pytest.mark.parametrize("focus", [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.3, 0.9)])
def test_a_zoom_enlarges_and_keeps_its_focus_in_place(
    focus: tuple[float, float],
) -> None:
    zoom = geometry.zoom(np.array([1.6]), np.array([focus]))
    matrix_33 = geometry.to_pixels([zoom], np.array([[SIDE, SIDE]]), SIDE)[0]
    place_3 = np.array([*(SIDE * share for share in focus), 1.0])
    np.testing.assert_allclose(matrix_33 @ place_3, place_3, atol=1e-5)
    np.testing.assert_allclose(matrix_33[[0, 1], [0, 1]], 1 / 1.6, rtol=1e-6)


@pytest.mark.parametrize(
    ("magnitudes", "corners"),
    [
        # right corners up and down, left ones, lower ones to the sides, upper ones
        ((0.2, 0.0, 0.0, 0.0), [(-1, -1), (-1, 1), (1, -1.2), (1, 1.2)]),
        ((0.0, -0.2, 0.0, 0.0), [(-1, -0.8), (-1, 0.8), (1, -1), (1, 1)]),
        ((0.0, 0.0, 0.2, 0.0), [(-1, -1), (-1.2, 1), (1, -1), (1.2, 1)]),
        ((0.1, 0.2, -0.1, -0.2), [(-0.8, -1.2), (-0.9, 1.2), (0.8, -1.1), (0.9, 1.1)]),
    ],
)
def test_a_warp_takes_the_moved_corners_to_the_squares(
    magnitudes: tuple[float, ...], corners: list[tuple[float, float]]
) -> None:
    matrix_33 = geometry.warp(np.array([magnitudes]))[0]
    read_34 = matrix_33 @ np.array([(*corner, 1.0) for corner in corners]).T
    np.testing.assert_allclose(
        (read_34[:2] / read_34[2]).T, [(-1, -1), (-1, 1), (1, -1), (1, 1)], atol=1e-12
    )


@pytest.mark.parametrize("shape", [(12, SIDE), (SIDE, 12), (1, SIDE), (7, 11)])
def test_a_slice_of_any_shape_is_fitted_whole_with_air_around_it(
    shape: tuple[int, int],
) -> None:
    found = moved(source_HW=np.full(shape, 1024, np.uint16))
    margins = [round((SIDE - SIDE * side / max(shape)) / 2) for side in shape]
    rows, columns = (slice(max(m + 1, 0), -m - 1 or None) for m in margins)
    if shape[0] > 1:
        assert (found[rows, columns] == 1024).all()
    for margin, edge_first in zip(margins, (found, found.T), strict=True):
        assert not edge_first[: max(margin - 1, 0)].any()
        assert not edge_first[SIDE - max(margin - 1, 0) :].any()


@pytest.mark.parametrize(
    ("shape", "aspect", "across", "down"),
    [
        ((512, 512), 1.0, 1.0, 1.0),
        ((63, 65), 1.0, 1.0, 1.0),
        ((512, 512), 0.5, 1.0, 2.0),
        ((512, 512), 2.0, 2.0, 1.0),
        ((64, 32), 0.5, 0.5, 1.0),
        ((32, 64), 2.0, 1.0, 0.5),
    ],
)
def test_pixels_are_shown_as_squares(
    shape: tuple[int, int], aspect: float, across: float, down: float
) -> None:
    [matrix_33] = geometry.square(np.array([shape]), np.array([aspect]))
    np.testing.assert_array_equal(matrix_33, np.diag([across, down, 1.0]))


def test_only_slices_at_least_twice_the_output_are_halved() -> None:
    rows, columns = (
        np.array([256, 447, 448, 100, 1]),
        np.array([256, 447, 300, 2000, 1]),
    )
    assert count_halvings(rows, columns, 224).tolist() == [0, 0, 1, 3, 0]
