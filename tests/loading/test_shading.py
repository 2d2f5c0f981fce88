"""A table per slice gives the reference's values, for every stored number.

Shape letters: B slices, S side of the images, C windows.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.config import EXP_30, AugmentConfig
from ichfast.augment.parameters import Parameters, draw
from ichfast.augment.reference import Numbers, jitter, shade
from ichfast.loading.shading import Shader
from ichfast.windows import Normalization, parse_window

COUNT, SIDE = 6, 256
EVERY_SS = np.arange(65_536, dtype=np.uint16).reshape(SIDE, SIDE)
NAMES = ("brain", "600/2800/sigmoid", "stroke", "40/200000")
WINDOWS = tuple(parse_window(name) for name in NAMES)
"""The last window needs a table of all stored numbers; the others need a part of it."""

MEAN, STD = (0.2, 0.3, 0.0, 0.5), (0.5, 0.6, 1.0, 0.25)


def drawn(augment: AugmentConfig) -> Parameters:
    return draw(
        augment,
        seed=3,
        epoch=1,
        slices_B=np.arange(COUNT),
        source_shape_B2=np.full((COUNT, 2), 256.0),
        size=SIDE,
    )


def numbers_of(parameters: Parameters, *names: str) -> dict[str, Numbers]:
    """Arrays that the loader hands to a shader, by name."""
    shifted = [
        [jitter(window, *map(float, shifts)) for window in WINDOWS]
        for shifts in zip(
            parameters.center_shift_B, parameters.width_shift_B, strict=True
        )
    ]
    everything: dict[str, Numbers] = {
        "center": np.array([[w.center for w in row] for row in shifted], np.float32),
        "width": np.array([[w.width for w in row] for row in shifted], np.float32),
        "contrast": parameters.contrast_B[:, np.newaxis],
        "brightness": parameters.brightness_B[:, np.newaxis],
        "corners": parameters.hole_corner_BM2.reshape(COUNT, -1),
        "sides": parameters.hole_side_BM2.reshape(COUNT, -1),
    }
    return {name: everything[name] for name in names}


def expected(parameters: Parameters) -> npt.NDArray[np.float32]:
    images = [
        shade(
            EVERY_SS.astype(np.float64),
            parameters,
            row,
            windows=WINDOWS,
            mean_C=MEAN,
            std_C=STD,
        )
        for row in range(COUNT)
    ]
    return np.stack(images)


def shaded(
    numbers: dict[str, Numbers], count: int = len(WINDOWS)
) -> npt.NDArray[np.float16]:
    """Shade every stored number through the first `count` of `WINDOWS`."""
    warped_BSS1 = np.tile(EVERY_SS[..., np.newaxis], (COUNT, 1, 1, 1))
    normalization = Normalization(mean=MEAN[:count], std=STD[:count])
    return Shader(WINDOWS[:count], normalization)(warped_BSS1, numbers)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_windows_alone_equal_the_reference_to_the_bit(count: int) -> None:
    wanted_BSSC = expected(drawn(AugmentConfig())).astype(np.float16)
    np.testing.assert_array_equal(shaded({}, count), wanted_BSSC[..., :count])


def test_holes_equal_the_reference_to_the_bit() -> None:
    parameters = drawn(replace(EXP_30, max_lighting=0.0, cutout_probability=1.0))
    assert (parameters.hole_corner_BM2[parameters.hole_side_BM2 > 0] < 0).any()
    found_BSSC = shaded(numbers_of(parameters, "corners", "sides"))
    np.testing.assert_array_equal(found_BSSC, expected(parameters).astype(np.float16))


@pytest.mark.parametrize("amount", [0.2, 0.98])
def test_lit_and_jittered_windows_equal_the_reference_up_to_rounding(
    amount: float,
) -> None:
    augment = AugmentConfig(
        max_lighting=amount, lighting_probability=1.0, window_jitter=(7.0, 100.0)
    )
    parameters = drawn(augment)
    wanted_BSSC = expected(parameters)
    names = ("center", "width", "contrast", "brightness")
    found_BSSC = shaded(numbers_of(parameters, *names))
    # float16 has 11 bits; values near black are small compared with the deviation.
    np.testing.assert_allclose(found_BSSC, wanted_BSSC, rtol=2**-11, atol=2e-6)
    parameters.contrast_B[2] *= 1.01
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            found_BSSC, expected(parameters), rtol=2**-11, atol=2e-6
        )


def test_neighbours_are_shaded_as_separate_channels() -> None:
    brain = Shader(WINDOWS[:1], Normalization(mean=(0.2,), std=(0.5,)))
    warped_1SS3 = np.stack([EVERY_SS, EVERY_SS // 40, EVERY_SS.T], axis=-1)[np.newaxis]
    together_1SS3 = brain(warped_1SS3, {})
    assert together_1SS3.flags.c_contiguous
    for channel in range(3):
        alone_1SS1 = brain(warped_1SS3[..., [channel]], {})
        np.testing.assert_array_equal(together_1SS3[..., [channel]], alone_1SS1)
