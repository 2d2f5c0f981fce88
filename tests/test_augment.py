"""Parameters follow their laws, belong to their slice, and do what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment import (
    AugmentConfig,
    Parameters,
    apply_parameters,
    count_halvings,
    draw,
    halve,
)
from ichfast.errors import RecipeError
from ichfast.windows import Window

SIZE = 40
WIDE = Window(center=1000, width=4000)  # -1000 to 3000 HU: nothing is cut off
EVERYTHING = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=30,
    max_zoom=1.4,
    max_warp=0.2,
    max_lighting=0.2,
    cutout_probability=0.5,
)


def drawn(config: AugmentConfig, count: int = 4000, epoch: int = 0) -> Parameters:
    """Parameters of slices 0, 1, 2, ... that are 40x40 at the source."""
    return draw(
        config,
        seed=11,
        epoch=epoch,
        slices_B=np.arange(count),
        source_shape_B2=np.full((count, 2), SIZE),
        size=SIZE,
    )


def applied(
    stored_HW: npt.NDArray[np.uint16], parameters: Parameters, size: int = SIZE
) -> npt.NDArray[np.float32]:
    """The first slice's output in HU, shape (size, size)."""
    value_SS1 = apply_parameters(
        stored_HW,
        parameters,
        0,
        size=size,
        windows=[WIDE],
        mean_C=[0.0],
        std_C=[1.0],
    )
    return value_SS1[..., 0] * 4000 - 1000


def a_slice() -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng(0)
    return rng.integers(24, 3000, (SIZE, SIZE)).astype(np.uint16)


def test_the_default_changes_nothing() -> None:
    parameters = drawn(AugmentConfig(), 1)
    stored_HW = a_slice()
    np.testing.assert_allclose(
        applied(stored_HW, parameters), stored_HW.astype(float) - 1024, atol=1e-3
    )
    assert parameters.hole_side_BM2.sum() == 0


def test_a_slice_draws_the_same_in_any_batch_and_another_in_another_epoch() -> None:
    together = drawn(EVERYTHING, 50)
    alone = draw(
        EVERYTHING,
        seed=11,
        epoch=0,
        slices_B=np.array([37, 5]),
        source_shape_B2=np.full((2, 2), SIZE),
        size=SIZE,
    )
    for name in Parameters.__slots__:
        whole, part = getattr(together, name), getattr(alone, name)
        np.testing.assert_array_equal(whole[[37, 5]], part)
    later = drawn(EVERYTHING, 50, epoch=1)
    assert (later.matrix_B33 != together.matrix_B33).any(axis=(1, 2)).sum() > 40


def test_a_certain_flip_mirrors_columns_and_nothing_else() -> None:
    stored_HW = a_slice()
    flipped = applied(stored_HW, drawn(AugmentConfig(flip_probability=1.0), 1))
    expected = stored_HW[:, ::-1].astype(float) - 1024
    np.testing.assert_allclose(flipped, expected, atol=1e-3)


def test_half_of_all_slices_flip() -> None:
    matrix_B33 = drawn(AugmentConfig(flip_probability=0.5)).matrix_B33
    assert abs((matrix_B33[:, 0, 0] < 0).mean() - 0.5) < 0.02


def test_zoom_is_uniform_and_happens_as_often_as_asked() -> None:
    config = AugmentConfig(max_zoom=1.4)
    zoom_B = 1 / drawn(config).matrix_B33[:, 0, 0]
    zoomed_B = zoom_B[zoom_B > 1 + 1e-6]
    assert abs(len(zoomed_B) / 4000 - 0.75) < 0.02
    np.testing.assert_allclose(
        np.quantile(zoomed_B, [0, 0.25, 0.5, 0.75, 1]),
        [1, 1.1, 1.2, 1.3, 1.4],
        atol=0.015,
    )


def test_zoom_keeps_its_focus_in_place() -> None:
    config = AugmentConfig(min_zoom=2.0, max_zoom=2.0, zoom_focus=(1.0, 0.0))
    stored_HW = np.zeros((SIZE, SIZE), np.uint16)
    stored_HW[: SIZE // 2, SIZE // 2 :] = 2000  # the upper right quarter
    image = applied(stored_HW, drawn(config, 1))
    assert (image[1:-1, 1:-1] == 2000 - 1024).all()


def test_rotation_is_uniform_between_its_limits() -> None:
    matrix_B33 = drawn(AugmentConfig(max_rotation_deg=30)).matrix_B33
    angle_B = np.rad2deg(np.arctan2(matrix_B33[:, 0, 1], matrix_B33[:, 0, 0]))
    turned_B = angle_B[abs(angle_B) > 1e-4]
    assert abs(len(turned_B) / 4000 - 0.75) < 0.02
    np.testing.assert_allclose(
        np.quantile(turned_B, [0, 0.25, 0.5, 0.75, 1]), [-30, -15, 0, 15, 30], atol=1.2
    )
    # About the centre: it stays where it is.
    centre_B3 = matrix_B33 @ np.array([SIZE / 2, SIZE / 2, 1])
    np.testing.assert_allclose(centre_B3[:, :2], SIZE / 2, atol=1e-4)


def test_a_warp_moves_the_four_corners_no_further_than_asked() -> None:
    matrix_B33 = drawn(AugmentConfig(max_warp=0.2)).matrix_B33.astype(np.float64)
    corners_34 = np.array([[0, 0, SIZE, SIZE], [0, SIZE, 0, SIZE], [1, 1, 1, 1]])
    found_B34 = np.linalg.inv(matrix_B33) @ corners_34
    moved_B24 = found_B34[:, :2] / found_B34[:, 2:] - corners_34[:2]
    furthest = abs(moved_B24).max() / (SIZE / 2)
    assert 0.19 < furthest < 0.2 + 1e-4
    still = (abs(moved_B24) < 1e-3).all(axis=(1, 2)).mean()
    assert abs(still - 0.25) < 0.02


def test_lighting_follows_fastai_in_logit_space() -> None:
    parameters = drawn(AugmentConfig(max_lighting=0.2))
    changed_B = parameters.brightness_B[parameters.brightness_B != 0]
    value_B = 1 / (1 + np.exp(-changed_B))  # what 0.5 becomes
    np.testing.assert_allclose(
        np.quantile(value_B, [0, 0.5, 1]), [0.4, 0.5, 0.6], atol=0.006
    )
    log_contrast_B = np.log(parameters.contrast_B[parameters.contrast_B != 1])
    np.testing.assert_allclose(
        np.quantile(log_contrast_B, [0, 0.5, 1]), [np.log(0.8), 0, -np.log(0.8)],
        atol=0.012,
    )  # fmt: skip
    assert abs(len(changed_B) / 4000 - 0.75) < 0.02


def test_window_jitter_is_uniform_between_its_limits() -> None:
    parameters = drawn(AugmentConfig(window_jitter=(7.0, 15.0)))
    for shift_B, limit in (
        (parameters.center_shift_B, 7.0),
        (parameters.width_shift_B, 15.0),
    ):
        np.testing.assert_allclose(
            np.quantile(shift_B, [0, 0.25, 0.5, 0.75, 1]) / limit,
            [-1, -0.5, 0, 0.5, 1],
            atol=0.04,
        )


def test_holes_have_the_number_and_side_asked_for_both_ends_included() -> None:
    config = AugmentConfig(cutout_probability=0.5)
    side_BM = drawn(config).hole_side_BM2[..., 0]
    holes_B = (side_BM > 0).sum(axis=1)
    assert abs((holes_B > 0).mean() - 0.5) < 0.02
    assert set(holes_B) == {0, *range(4, 21)}
    sides = side_BM.max(axis=1)[holes_B > 0]
    assert set(sides) == set(range(2, 31))
    assert abs(holes_B[holes_B > 0].mean() - 12) < 0.3


def test_a_hole_is_air_and_is_clipped_at_the_border() -> None:
    parameters = drawn(AugmentConfig(), 1)
    parameters.hole_corner_BM2[0, :2] = [[-2, 35], [10, 10]]
    parameters.hole_side_BM2[0, :2] = [[5, 9], [3, 3]]
    stored_HW = np.full((SIZE, SIZE), 1024, np.uint16)
    image = applied(stored_HW, parameters)
    expected = np.zeros((SIZE, SIZE))
    expected[:3, 35:] = expected[10:13, 10:13] = -1000
    np.testing.assert_allclose(image, expected, atol=1e-3)


def test_a_slice_of_another_shape_is_fitted_whole_with_air_around_it() -> None:
    stored_HW = np.full((20, 40), 1024, np.uint16)
    parameters = draw(
        AugmentConfig(),
        seed=0,
        epoch=0,
        slices_B=np.array([0]),
        source_shape_B2=np.array([[20, 40]]),
        size=40,
    )
    image = applied(stored_HW, parameters)
    assert (image[11:29] == 0).all()
    assert (image[:9] == -1000).all()
    assert (image[31:] == -1000).all()


def test_only_slices_at_least_twice_the_output_are_halved() -> None:
    rows, columns = np.array([256, 447, 448, 100]), np.array([256, 447, 300, 2000])
    assert count_halvings(rows, columns, 224).tolist() == [0, 0, 1, 3]


def test_halving_takes_the_mean_of_four_and_air_beyond_an_odd_edge() -> None:
    stored_HW = np.array([[0, 4, 8], [4, 8, 8], [12, 12, 20]], dtype=np.uint16)
    assert halve(stored_HW).tolist() == [[4, 4], [6, 5]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip_probability": 1.5},
        {"min_zoom": 1.2, "max_zoom": 1.1},
        {"max_warp": 0.5},
        {"cutout_holes": (4, 21)},
        {"cutout_side": (5, 4)},
    ],
)
def test_laws_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"augment.{next(iter(wrong))}"):
        replace(AugmentConfig(), **wrong)
