"""Level 256 is the mean of what it covers, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from ichfast.store.levels import check_levels, reduce_to_256


def test_level_256_is_the_mean_of_2x2_with_halves_rounded_up() -> None:
    stored_HW = np.random.default_rng(1).integers(0, 32768, (512, 512), np.uint16)
    blocks = stored_HW.reshape(256, 2, 256, 2).astype(np.int64)
    expected_HW = (blocks.sum(axis=(1, 3)) + 2) // 4
    np.testing.assert_array_equal(reduce_to_256(stored_HW), expected_HW)


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
        reduce_to_256(stored_HW), np.floor(expected_HW + 0.5).astype(np.uint16)
    )


def test_the_general_filter_agrees_with_the_fast_one() -> None:
    stored_HW = np.random.default_rng(3).integers(0, 32768, (512, 512), np.uint16)
    # With every pixel repeated, 1024x1024 must give what 512x512 gives.
    general_HW = reduce_to_256(stored_HW.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(general_HW, reduce_to_256(stored_HW))


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
    small_HW = reduce_to_256(np.full(shape, 1064, np.uint16))
    assert small_HW.shape == (256, 256)
    assert (small_HW[inside] == 1064).all()
    small_HW[inside] = 0
    assert not small_HW.any()


@pytest.mark.parametrize("levels", [(), (256,), (256, 512), (512, 128), (512, 512)])
def test_other_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="levels are 512,256 or 512 alone"):
        check_levels(levels)
