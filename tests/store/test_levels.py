"""Level 256 is the mean of what it covers, and nothing else.

Halving in NumPy gives what its readable twin gives, to the bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.geometry import halved_shape
from ichfast.augment.reference import halve
from ichfast.store.levels import check_levels, halve_into, reduce_to_level, sum_of_2x2


def test_level_256_is_the_mean_of_2x2_with_halves_rounded_up() -> None:
    stored_HW = np.random.default_rng(1).integers(0, 32768, (512, 512), np.uint16)
    blocks = stored_HW.reshape(256, 2, 256, 2).astype(np.int64)
    expected_HW = (blocks.sum(axis=(1, 3)) + 2) // 4
    np.testing.assert_array_equal(reduce_to_level(stored_HW, 256), expected_HW)


@pytest.mark.parametrize("shape", [(768, 768), (1024, 1024), (128, 128)])
def test_whole_factors_are_exact_means_or_repeats(shape: tuple[int, int]) -> None:
    stored_HW = np.random.default_rng(2).integers(0, 32768, shape, np.uint16)
    if shape[0] < 256:
        expected_HW = stored_HW.repeat(2, axis=0).repeat(2, axis=1).astype(np.float64)
    else:
        factor = shape[0] // 256
        expected_HW = stored_HW.reshape(256, factor, 256, factor).mean(axis=(1, 3))
    # Ninths of an integer are not exact in binary, but never near a half.
    np.testing.assert_array_equal(
        reduce_to_level(stored_HW, 256), np.floor(expected_HW + 0.5).astype(np.uint16)
    )


def test_the_general_filter_agrees_with_the_fast_one() -> None:
    stored_HW = np.random.default_rng(3).integers(0, 32768, (512, 512), np.uint16)
    # With every pixel repeated, 1024x1024 must give what 512x512 gives.
    general_HW = reduce_to_level(stored_HW.repeat(2, axis=0).repeat(2, axis=1), 256)
    np.testing.assert_array_equal(general_HW, reduce_to_level(stored_HW, 256))


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ((638, 490), (slice(0, 256), slice(29, 226))),
        ((63, 65), (slice(4, 252), slice(0, 256))),
        ((1, 700), (slice(127, 128), slice(0, 256))),
    ],
)
def test_the_aspect_is_kept_and_the_rest_is_air(
    shape: tuple[int, int], inside: tuple[slice, slice]
) -> None:
    small_HW = reduce_to_level(np.full(shape, 1064, np.uint16), 256)
    assert small_HW.shape == (256, 256)
    assert (small_HW[inside] == 1064).all()
    small_HW[inside] = 0
    assert not small_HW.any()


@pytest.mark.parametrize("levels", [(), (256,), (256, 512), (512, 128), (512, 512)])
def test_other_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels are 512,256 or 512 alone"):
        check_levels(levels)


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
