"""Halving in NumPy gives what its readable twin gives, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.geometry import halved_shape
from ichfast.augment.reference import halve
from ichfast.halving import halve_into, sum_of_2x2


def halved(stored_HW: npt.NDArray[np.uint16], times: int) -> npt.NDArray[np.uint16]:
    shape = halved_shape(np.array([stored_HW.shape]), np.array([times]))[0]
    out_HW = np.full(shape, 7, np.uint16)
    halve_into(stored_HW, times, out_HW)
    return out_HW


@pytest.mark.parametrize("most", [3, 32_767])
@pytest.mark.parametrize(
    "shape", [(512, 512), (638, 490), (63, 65), (7, 4), (4, 7), (1, 9), (1, 1)]
)
@pytest.mark.parametrize("times", [1, 2, 4])
def test_halving_equals_its_twin_and_leaves_the_slice_as_it_was(
    shape: tuple[int, int], times: int, most: int
) -> None:
    stored_HW = np.random.default_rng(times).integers(0, most + 1, shape, np.uint16)
    kept_HW = expected_HW = stored_HW.copy()
    for _ in range(times):
        expected_HW = halve(expected_HW)
    np.testing.assert_array_equal(halved(stored_HW, times), expected_HW)
    np.testing.assert_array_equal(stored_HW, kept_HW)


def test_ties_go_to_the_even_number_and_the_largest_numbers_do_not_overflow() -> None:
    for total in (2, 6, 10, 14, 131_066, 131_068):
        first = total // 4
        square = np.array([[first, first], [first, total - 3 * first]], np.uint16)
        # Python's rounding goes to the even number, too.
        assert halved(square, 1).tolist() == [[round(total / 4)]]


def test_sums_of_four_are_whole() -> None:
    stored_HW = np.full((4, 6), 32_767, np.uint16)
    assert sum_of_2x2(stored_HW).tolist() == [[131_068] * 3] * 2
