"""The reference applies each parameter to a slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ichfast.augment.config import NONE
from ichfast.augment.parameters import Parameters, draw
from ichfast.augment.reference import LOGIT_EPSILON, apply_parameters, halve
from ichfast.windows import Window

SIZE = 40
WIDE = Window(center=1000, width=4000)  # -1000 to 3000 HU: nothing is cut off


def nothing_drawn() -> Parameters:
    """Parameters of one slice of 40x40 that change nothing."""
    return draw(
        NONE,
        seed=11,
        epoch=0,
        slices_B=np.array([0]),
        source_shape_B2=np.array([[SIZE, SIZE]]),
        size=SIZE,
    )


def applied(
    stored_HW: npt.NDArray[np.uint16], parameters: Parameters
) -> npt.NDArray[np.float32]:
    """The slice's output in HU, shape (SIZE, SIZE)."""
    value_SS1 = apply_parameters(
        stored_HW,
        parameters,
        0,
        size=SIZE,
        windows=[WIDE],
        mean_C=[0.0],
        std_C=[1.0],
    )
    return value_SS1[..., 0] * 4000 - 1000


def a_slice() -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng(0)
    return rng.integers(24, 3000, (SIZE, SIZE)).astype(np.uint16)


def test_nothing_drawn_changes_nothing_and_the_slice_stays_as_it_was() -> None:
    stored_HW = a_slice()
    kept_HW = stored_HW.copy()
    np.testing.assert_allclose(
        applied(stored_HW, nothing_drawn()), kept_HW.astype(float) - 1024, atol=1e-3
    )
    np.testing.assert_array_equal(stored_HW, kept_HW)


def test_a_hole_is_air_and_is_clipped_at_the_border() -> None:
    parameters = nothing_drawn()
    parameters.hole_corner_BM2[0, :2] = [[-2, 35], [10, 10]]
    parameters.hole_side_BM2[0, :2] = [[5, 9], [3, 3]]
    stored_HW = np.full((SIZE, SIZE), 1024, np.uint16)
    image = applied(stored_HW, parameters)
    expected = np.zeros((SIZE, SIZE))
    expected[:3, 35:] = expected[10:13, 10:13] = -1000
    np.testing.assert_allclose(image, expected, atol=1e-3)


def test_lighting_is_arithmetic_on_logits_and_comes_before_the_holes() -> None:
    parameters = replace(
        nothing_drawn(),
        contrast_B=np.array([1.25], np.float32),
        brightness_B=np.array([-0.3], np.float32),
    )
    parameters.hole_corner_BM2[0, 0] = [0, 0]
    parameters.hole_side_BM2[0, 0] = [2, 2]
    stored_HW = a_slice()
    value = (stored_HW.astype(float) - 24) / 4000
    logit = np.log(value.clip(LOGIT_EPSILON) / (1 - value.clip(LOGIT_EPSILON)))
    expected = 1 / (1 + np.exp(-(logit - 0.3) * 1.25))
    expected[:2, :2] = 0
    found = (applied(stored_HW, parameters) + 1000) / 4000
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_window_moves_with_its_jitter_and_stays_a_window() -> None:
    parameters = replace(
        nothing_drawn(),
        center_shift_B=np.array([10.0], np.float32),
        width_shift_B=np.array([-9999.0], np.float32),
    )
    stored_HW = np.full((SIZE, SIZE), 1024 + 1010, np.uint16)
    stored_HW[0] = 1024 + 1009
    stored_HW[1] = 1024 + 1011
    value = (applied(stored_HW, parameters) + 1000) / 4000
    np.testing.assert_allclose(value[:3, 0], [0.0, 1.0, 0.5], atol=1e-6)


def test_halving_takes_the_mean_of_four_and_air_beyond_an_odd_edge() -> None:
    stored_HW = np.array([[0, 4, 8], [4, 8, 8], [12, 12, 20]], dtype=np.uint16)
    assert halve(stored_HW).tolist() == [[4, 4], [6, 5]]
