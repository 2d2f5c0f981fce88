"""Draws follow fastai's distributions, and depend on their slice alone.

The seed is fixed, so the tests are deterministic. Tolerances are those of a sample of
`COUNT`. A share is within 4 of its standard deviations. A quantity is uniform if no
quantile is further off than Kolmogorov's 1.95 / sqrt(n), which one fair sample in a
thousand exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ichfast.augment.config import PRESETS, AugmentConfig
from ichfast.augment.parameters import Parameters, _uniforms, draw

COUNT = 20_000
SIZE = 40
Numbers = npt.NDArray[np.float64]

EVERYTHING = AugmentConfig(
    flip_probability=0.5,
    dihedral_probability=0.5,
    max_rotation_deg=30,
    max_zoom=1.4,
    max_warp=0.2,
    max_shift=0.1,
    max_lighting=0.2,
    window_jitter=(7.0, 15.0),
    cutout_probability=0.5,
)


def drawn(config: AugmentConfig, slices: Any = COUNT, **options: int) -> Parameters:
    """Draw parameters of slices of 40x40."""
    slices_B = np.arange(slices) if isinstance(slices, int) else np.asarray(slices)
    return draw(
        config,
        seed=options.get("seed", 11),
        epoch=options.get("epoch", 0),
        slices_B=slices_B,
        source_shape_B2=np.full((len(slices_B), 2), SIZE),
        size=SIZE,
    )


def centred(parameters: Parameters) -> Numbers:
    """The matrices in centred coordinates, -1 to 1, shape (B, 3, 3)."""
    to_pixels_33 = np.array(
        [[SIZE / 2, 0, SIZE / 2], [0, SIZE / 2, SIZE / 2], [0, 0, 1]]
    )
    matrix_B33 = parameters.matrix_B33.astype(np.float64)
    return np.linalg.inv(to_pixels_33) @ matrix_B33 @ to_pixels_33


def check_share(claims: npt.NDArray[np.bool_], share: float) -> None:
    deviation = math.sqrt(share * (1 - share) / len(claims))
    assert abs(claims.mean() - share) <= 4 * deviation


def check_uniform(values: Numbers, low: float, high: float) -> None:
    """Check that values are uniform between `low` and `high`."""
    places = np.sort((values - low) / (high - low))
    assert places[0] > -1e-4
    assert places[-1] < 1 + 1e-4
    steps = np.arange(len(places) + 1) / len(places)
    distance = max(abs(places - steps[1:]).max(), abs(places - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(len(places))


def check_integers(values: npt.NDArray[Any], low: int, high: int) -> None:
    """Check that integers are equally frequent, both ends included."""
    assert set(values.astype(int)) == set(range(low, high + 1))
    for each in range(low, high + 1):
        check_share(values == each, 1 / (high - low + 1))


# The random generator


def splitmix(seed: int, epoch: int, position: int, count: int) -> list[float]:
    """The generator in Python's integers, for one slice."""
    mask = 2**64 - 1

    def mix(bits: int) -> int:
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & mask
        return bits ^ (bits >> 31)

    key = mix((mix(seed) + epoch) & mask)
    start = mix((key + position) & mask)
    steps = ((start + k * 0x9E3779B97F4A7C15) & mask for k in range(1, count + 1))
    return [(mix(step) >> 11) / 2**53 for step in steps]


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**63 + 5])
def test_the_generator_is_splitmix64_to_the_bit(seed: int) -> None:
    slices_B = np.array([0, 1, 752_802])
    found_BU = _uniforms(seed, 7, slices_B, 66)
    for row, position in enumerate(slices_B.tolist()):
        assert found_BU[row].tolist() == splitmix(seed, 7, position, 66)


def test_all_numbers_are_uniform_and_uncorrelated() -> None:
    slices_B = np.arange(COUNT)
    uniform_BU = _uniforms(11, 0, slices_B, 66)
    for column_B in uniform_BU.T:
        check_uniform(column_B, 0, 1)
    neighbours_BU = [
        uniform_BU,
        _uniforms(11, 0, slices_B + 1, 66),  # the next slice
        _uniforms(11, 1, slices_B, 66),  # the next epoch
        _uniforms(12, 0, slices_B, 66),  # another seed
    ]
    together = np.corrcoef(np.concatenate(neighbours_BU, axis=1).T)
    np.fill_diagonal(together, 0)
    # Of 34,716 pairs, 0.02 fair ones are expected beyond 5 deviations.
    assert abs(together).max() < 5 / math.sqrt(COUNT)


# Distributions


def test_a_flip_is_as_likely_as_asked() -> None:
    for chance in (0.5, 0.1):
        parameters = drawn(AugmentConfig(flip_probability=chance))
        check_share(parameters.matrix_B33[:, 0, 0] < 0, chance)


@pytest.mark.parametrize("chance", [1.0, 0.5])
def test_the_eight_symmetries_are_equally_likely(chance: float) -> None:
    matrix_B33 = centred(drawn(AugmentConfig(dihedral_probability=chance)))
    kinds, counts = np.unique(np.rint(matrix_B33), axis=0, return_counts=True)
    assert len(kinds) == 8
    for kind_33, count in zip(kinds, counts, strict=True):
        stays = bool((kind_33 == np.eye(3)).all())
        share = chance / 8 + (1 - chance) * stays
        check_share(np.arange(COUNT) < count, share)


def test_rotation_is_uniform_between_its_limits_about_the_centre() -> None:
    matrix_B33 = centred(drawn(AugmentConfig(max_rotation_deg=30)))
    angle_B = np.rad2deg(np.arctan2(matrix_B33[:, 0, 1], matrix_B33[:, 0, 0]))
    turned_B = abs(angle_B) > 1e-4
    check_share(turned_B, 0.75)
    check_uniform(angle_B[turned_B], -30, 30)
    np.testing.assert_allclose(matrix_B33[:, :2, 2], 0, atol=1e-5)


@pytest.mark.parametrize(("chance", "min_zoom"), [(0.75, 1.0), (1.0, 1.05)])
def test_zoom_and_its_focus_are_uniform(chance: float, min_zoom: float) -> None:
    config = AugmentConfig(zoom_probability=chance, min_zoom=min_zoom, max_zoom=1.4)
    matrix_B33 = centred(drawn(config))
    scale_B = matrix_B33[:, 0, 0]
    zoomed_B = scale_B < 1 - 1e-6
    check_share(zoomed_B, chance)
    check_uniform(1 / scale_B[zoomed_B], min_zoom, 1.4)
    enough_B = scale_B < 1 - 1e-2  # a tiny zoom does not tell its focus
    for axis in (0, 1):
        focus_B = matrix_B33[enough_B, axis, 2] / (1 - scale_B[enough_B]) / 2 + 0.5
        check_uniform(focus_B, 0, 1)


def test_a_zoom_with_a_given_focus_happens_to_every_slice() -> None:
    config = AugmentConfig(min_zoom=1.35, max_zoom=1.35, zoom_focus=(1.0, 0.0))
    matrix_B33 = centred(drawn(config, 50))
    rest = 1 - 1 / 1.35
    expected_33 = np.array([[1 / 1.35, 0, rest], [0, 1 / 1.35, -rest], [0, 0, 1]])
    for matrix_33 in matrix_B33:
        np.testing.assert_allclose(matrix_33, expected_33, atol=1e-6)


def test_a_warp_moves_four_pairs_of_corners_each_uniformly() -> None:
    parameters = drawn(AugmentConfig(max_warp=0.2))
    corners_34 = np.array([[-1, -1, 1, 1], [-1, 1, -1, 1], [1, 1, 1, 1]])
    found_B34 = np.linalg.inv(centred(parameters)) @ corners_34
    out_B24 = found_B34[:, :2] / found_B34[:, 2:] * corners_34[:2] - 1
    warped_B = (abs(out_B24) > 1e-5).any(axis=(1, 2))
    check_share(warped_B, 0.75)
    x_B4, y_B4 = out_B24[warped_B, 0], out_B24[warped_B, 1]
    # The two corners of a pair move equally far, in opposite directions.
    for pair_B4, first, second in (
        (x_B4, 0, 2),
        (x_B4, 1, 3),
        (y_B4, 0, 1),
        (y_B4, 2, 3),
    ):
        np.testing.assert_allclose(pair_B4[:, first], pair_B4[:, second], atol=1e-4)
        check_uniform(pair_B4[:, first], -0.2, 0.2)


def test_a_shift_is_uniform_across_and_down() -> None:
    parameters = drawn(AugmentConfig(max_shift=0.1))
    moved_B2 = -centred(parameters)[:, :2, 2] / 2
    shifted_B = np.any(abs(moved_B2) > 1e-7, axis=1)
    check_share(shifted_B, 0.75)
    for axis in (0, 1):
        check_uniform(moved_B2[shifted_B, axis], -0.1, 0.1)


def test_lighting_follows_fastai_in_logit_space() -> None:
    parameters = drawn(AugmentConfig(max_lighting=0.2))
    brighter_B = parameters.brightness_B != 0
    check_share(brighter_B, 0.75)
    brightness_B = parameters.brightness_B[brighter_B].astype(np.float64)
    check_uniform(1 / (1 + np.exp(-brightness_B)), 0.5 * (1 - 0.2), 0.5 * (1 + 0.2))
    sharper_B = parameters.contrast_B != 1
    check_share(sharper_B, 0.75)
    contrast_B = parameters.contrast_B[sharper_B].astype(np.float64)
    check_uniform(np.log(contrast_B), np.log(1 - 0.2), np.log(1 / (1 - 0.2)))
    check_share(sharper_B & brighter_B, 0.75**2)


def test_lighting_is_as_likely_as_asked() -> None:
    config = AugmentConfig(max_lighting=0.2, lighting_probability=0.3)
    check_share(drawn(config).brightness_B != 0, 0.3)
    check_share(drawn(config).contrast_B != 1, 0.3)


def test_window_jitter_is_uniform_between_its_limits() -> None:
    parameters = drawn(AugmentConfig(window_jitter=(7.0, 15.0)))
    check_uniform(parameters.center_shift_B.astype(np.float64), -7, 7)
    check_uniform(parameters.width_shift_B.astype(np.float64), -15, 15)


def test_holes_have_numbers_and_sides_in_range_both_ends_included() -> None:
    parameters = drawn(PRESETS["exp-30"])
    assert (parameters.hole_side_BM2[..., 0] == parameters.hole_side_BM2[..., 1]).all()
    side_BM = parameters.hole_side_BM2[..., 0]
    holes_B = (side_BM > 0).sum(axis=1)
    cut_B = holes_B > 0
    check_share(cut_B, 0.5)
    check_integers(holes_B[cut_B], 4, 20)
    check_integers(side_BM.max(axis=1)[cut_B], 2, 30)
    one_for_all_B1 = side_BM.max(axis=1, keepdims=True)
    assert ((side_BM == one_for_all_B1) | (side_BM == 0)).all()


def test_holes_lie_around_a_uniform_pixel() -> None:
    parameters = drawn(AugmentConfig(cutout_probability=1.0, cutout_holes=(20, 20)))
    middle_BM2 = parameters.hole_corner_BM2 + np.ceil(parameters.hole_side_BM2 / 2)
    check_integers(middle_BM2[:, 0, 0], 0, SIZE - 1)
    check_integers(middle_BM2[:, 19, 1], 0, SIZE - 1)


# Independence of the settings


def features() -> Iterator[tuple[str, Numbers]]:
    """Yield numbers of each slice that its parameters reveal, by name."""
    yield "flip", centred(drawn(AugmentConfig(flip_probability=0.5)))[:, 0, 0]
    symmetric_B33 = centred(drawn(AugmentConfig(dihedral_probability=0.5)))
    yield from ((f"symmetry {k}", symmetric_B33[:, 0, k]) for k in (0, 1))
    angle_B33 = centred(drawn(AugmentConfig(max_rotation_deg=30)))
    yield "angle", angle_B33[:, 0, 1]
    yield "turned", abs(angle_B33[:, 0, 1])
    zoom_B33 = centred(drawn(AugmentConfig(max_zoom=1.4)))
    yield from ((f"zoom {k}", zoom_B33[:, 0, k]) for k in (0, 2))
    yield "focus y", zoom_B33[:, 1, 2]
    warp_B33 = centred(drawn(AugmentConfig(max_warp=0.2)))
    yield from ((f"warp {k}", warp_B33[:, 2, k]) for k in (0, 1))
    shift_B33 = centred(drawn(AugmentConfig(max_shift=0.1)))
    yield from ((f"shift {k}", shift_B33[:, k, 2]) for k in (0, 1))
    rest = drawn(EVERYTHING)
    yield "brightness", rest.brightness_B.astype(np.float64)
    yield "lit", (rest.brightness_B != 0).astype(np.float64)
    yield "contrast", np.log(rest.contrast_B.astype(np.float64))
    yield "center", rest.center_shift_B.astype(np.float64)
    yield "width", rest.width_shift_B.astype(np.float64)
    cut_B = rest.hole_side_BM2[:, 0, 0] > 0
    yield "cut", cut_B.astype(np.float64)
    yield "holes", (rest.hole_side_BM2[..., 0] > 0).sum(axis=1) - 12.0 * cut_B
    yield "hole row", rest.hole_corner_BM2[:, 0, 0].astype(np.float64)


def test_draws_of_different_settings_are_uncorrelated() -> None:
    names, values = zip(*features(), strict=True)
    together = np.corrcoef(np.stack(values))
    related = {
        ("turned", "angle"), ("lit", "brightness"), ("cut", "holes"),
        ("symmetry 0", "symmetry 1"), ("zoom 0", "zoom 2"), ("zoom 0", "focus y"),
    }  # fmt: skip
    for (row, column), value in np.ndenumerate(np.tril(together, -1)):
        pair = names[column], names[row]
        if not {pair, pair[::-1]} & related:
            assert abs(value) < 4 / math.sqrt(COUNT), pair


def test_a_setting_that_is_switched_on_changes_no_other_draw() -> None:
    """The matrix of all settings is the product of the matrices of each."""
    alone = [
        AugmentConfig(dihedral_probability=0.5),
        AugmentConfig(max_rotation_deg=30),
        AugmentConfig(max_zoom=1.4),
        AugmentConfig(max_warp=0.2),
        AugmentConfig(max_shift=0.1),
        AugmentConfig(flip_probability=0.5),
    ]
    product_B33 = np.eye(3)
    for config in alone:
        product_B33 = product_B33 @ centred(drawn(config, 500))
    together = drawn(EVERYTHING, 500)
    np.testing.assert_allclose(centred(together), product_B33, atol=2e-5)
    lit = drawn(AugmentConfig(max_lighting=0.2), 500)
    np.testing.assert_array_equal(lit.contrast_B, together.contrast_B)
    cut = drawn(AugmentConfig(cutout_probability=0.5), 500)
    np.testing.assert_array_equal(cut.hole_side_BM2, together.hole_side_BM2)


# Independence of the slices


def test_a_slice_draws_what_it_drew_in_earlier_versions() -> None:
    """A run can be repeated with a later version."""
    parameters = drawn(EVERYTHING, [1009])
    matrix_33 = [
        [1.00587964, 0.01011085, -0.41359743],
        [0.08128756, 1.12058210, -0.30296266],
        [-0.00075109, 0.00561549, 0.90900713],
    ]
    np.testing.assert_allclose(parameters.matrix_B33[0], matrix_33, atol=1e-6)
    np.testing.assert_allclose(parameters.center_shift_B, -5.04992, atol=1e-5)
    np.testing.assert_allclose(parameters.width_shift_B, 7.498294, atol=1e-5)
    np.testing.assert_allclose(parameters.contrast_B, 0.890399, atol=1e-6)
    np.testing.assert_allclose(parameters.brightness_B, 0.046763, atol=1e-6)
    assert parameters.hole_corner_BM2[0, :2].tolist() == [[30, 12], [-3, -3]]
    assert parameters.hole_side_BM2[0, :, 0].tolist() == [16] * 13 + [0] * 7


def rows_of(parameters: Parameters, rows: Any) -> dict[str, npt.NDArray[Any]]:
    return {name: getattr(parameters, name)[rows] for name in Parameters.__slots__}


def test_a_slice_draws_the_same_in_any_batch_and_in_any_order() -> None:
    together = drawn(EVERYTHING, 1009)
    order_N = np.random.default_rng(0).permutation(1009)
    for batch_size in (1, 7, 64):
        for first in (0, batch_size, 1009 - batch_size):
            picked_B = order_N[first : first + batch_size]
            alone = rows_of(drawn(EVERYTHING, picked_B), slice(None))
            for name, expected in rows_of(together, picked_B).items():
                np.testing.assert_array_equal(alone[name], expected, err_msg=name)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 12}])
def test_another_epoch_and_another_seed_draw_anew(change: dict[str, int]) -> None:
    before, after = drawn(EVERYTHING, 500), drawn(EVERYTHING, 500, **change)
    assert (before.matrix_B33 != after.matrix_B33).any(axis=(1, 2)).mean() > 0.99
    for name in ("center_shift_B", "width_shift_B"):
        assert (getattr(before, name) != getattr(after, name)).all()


def test_a_slice_draws_the_same_at_any_size_and_from_any_level() -> None:
    """Only the units change: pixels of the output, pixels of the source."""
    small, large = (
        draw(
            EVERYTHING,
            seed=11,
            epoch=0,
            slices_B=np.arange(50),
            source_shape_B2=np.full((50, 2), side),
            size=size,
        )
        for side, size in ((256, 64), (512, 128))
    )
    unit_33 = np.diag([2.0, 2.0, 1.0])
    scaled_B33 = unit_33 @ small.matrix_B33.astype(np.float64) @ np.linalg.inv(unit_33)
    np.testing.assert_allclose(large.matrix_B33, scaled_B33, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(small.contrast_B, large.contrast_B)
