"""Synthetic heads have what real ones have: noise, soft edges, tilt, a skull base."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from ichfast.synth.anatomy import Anatomy, draw_anatomy, outlines
from ichfast.synth.canvas import NUM_ANGLES, Field, Grid
from ichfast.synth.dataset import synthesize
from ichfast.synth.hemorrhage import (
    AGES,
    MIN_AREA_MM2,
    MIN_CONTRAST_HU,
    SUBTYPES,
    Bleed,
    draw_bleed,
)
from ichfast.synth.phantom import Phantom
from ichfast.synth.scanner import KERNELS, THICK_MM, Kernel, Noise
from ichfast.synth.series import Series, plan, thicknesses

GRID = Grid(128, 128, spacing_mm=2.0, rotation=0.0, x_mm=0.0, y_mm=0.0)
FINE = Grid(384, 384, spacing_mm=0.65, rotation=0.0, x_mm=0.0, y_mm=0.0)

BLOB = Bleed(
    subtype="intraparenchymal",
    age="acute",
    hu=62.0,
    height=60.0,
    half_height=16.0,
    x=30.0,
    y=10.0,
    radius=15.0,
)


def make_noise(
    kernel: Kernel, *, grid: Grid = GRID, is_helical: bool = False, seed: int = 0
) -> Noise:
    return Noise(
        np.random.default_rng(seed),
        grid,
        kernel,
        noise_hu=4.0,
        is_helical=is_helical,
    )


def correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def neighbours(noise_HW: npt.NDArray[np.floating]) -> float:
    """Correlation between neighbours in a row and in a column, averaged."""
    rows, columns = noise_HW.shape
    middle_HW = noise_HW[rows // 4 : -rows // 4, columns // 4 : -columns // 4]
    return 0.5 * (
        correlation(middle_HW[:, 1:], middle_HW[:, :-1])
        + correlation(middle_HW[1:], middle_HW[:-1])
    )


def draw(
    height: float,
    *bleeds: Bleed,
    anatomy: Anatomy | None = None,
    grid: Grid = FINE,
    thickness_mm: float = THICK_MM,
    edge_mm: float = 0.8,
) -> tuple[Field, tuple[str, ...]]:
    anatomy = anatomy or draw_anatomy(np.random.default_rng(1))
    air_HW = np.full((grid.rows, grid.columns), -1000.0, dtype=np.float32)
    phantom = Phantom(anatomy, grid, edge_mm=edge_mm)
    return phantom.draw(air_HW, height, bleeds, thickness_mm=thickness_mm)


def at(hu_HW: Field, x: float, y: float) -> float:
    """Median HU around a place of the head, mm from the axis."""
    row, column = (int(FINE.rows / 2 + mm / FINE.spacing_mm) for mm in (y, x))
    return float(np.median(hu_HW[row - 2 : row + 3, column - 2 : column + 3]))


@pytest.mark.parametrize("thickness_mm", [2.5, 3.0, 5.0])
@pytest.mark.parametrize("name", KERNELS)
def test_neighbouring_pixels_of_the_noise_correlate_as_in_real_slices(
    name: str, thickness_mm: float
) -> None:
    noise = make_noise(KERNELS[name])
    found = [neighbours(noise.draw(thickness_mm)) for _ in range(8)]
    assert 0.5 < np.mean(found) < 0.7


def test_a_sharper_kernel_correlates_less_and_is_noisier() -> None:
    drawn = {
        name: np.stack([make_noise(kernel, seed=s).draw(5.0) for s in range(6)])
        for name, kernel in KERNELS.items()
    }
    correlations = [np.mean([neighbours(n) for n in drawn[name]]) for name in KERNELS]
    assert correlations == sorted(correlations, reverse=True)
    assert correlations[0] - correlations[-1] > 0.1
    strengths = [drawn[name].std() for name in KERNELS]
    assert strengths == sorted(strengths)


def test_thin_slices_and_small_pixels_are_noisier_by_the_root_of_the_photons() -> None:
    kernel = KERNELS["standard"]
    strong, weak = (make_noise(kernel).draw(mm).std() for mm in (2.5, 5.0))
    assert strong / weak == pytest.approx(2**0.5, rel=0.01)
    small = make_noise(kernel, grid=GRID._replace(spacing_mm=0.5)).draw(5.0).std()
    assert small / weak == pytest.approx(2.0, rel=0.01)


def test_neighbouring_slices_share_their_noise_only_in_a_helical_series() -> None:
    for is_helical, low, high in ((False, -0.1, 0.1), (True, 0.4, 0.6)):
        noise = make_noise(KERNELS["smooth"], is_helical=is_helical)
        slices = [noise.draw(5.0) for _ in range(9)]
        next_ones = [correlation(a, b) for a, b in pairwise(slices)]
        others = [correlation(a, b) for a, b in zip(slices, slices[2:], strict=False)]
        assert low < np.mean(next_ones) < high
        assert abs(np.mean(others)) < 0.1
        assert np.std(slices) == pytest.approx(
            np.std(make_noise(KERNELS["smooth"]).draw(5.0)), rel=0.1
        )


@pytest.mark.slow
def test_the_written_slices_have_that_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slices(name: str) -> dict[str, npt.NDArray[np.float64]]:
        report = synthesize(
            tmp_path / name, num_slices=80, seed=4, size=128, quirks=False
        )
        return {
            path.stem: pydicom.dcmread(path, force=True).pixel_array.astype(float)
            for path in report.dicom_dir.rglob("*.dcm")
        }

    noisy = slices("noisy")
    zero_HW = np.zeros((128, 128), dtype=np.float32)
    monkeypatch.setattr(Noise, "draw", lambda *_: zero_HW)
    still = slices("still")
    found = [neighbours(noisy[name] - still[name]) for name in noisy]
    assert 0.5 < np.mean(found) < 0.7
    assert 0.35 < np.min(found) < np.max(found) < 0.85  # single slices of 4,096 pixels


def test_thin_series_have_thin_slices_at_the_skull_base() -> None:
    assert thicknesses([0.0, 3.0, 6.0, 11.0, 31.0]) == [3.0, 3.0, 5.0, 5.0, 5.0]
    assert thicknesses([0.0, 1.0]) == [2.5, 5.0]


def soft_share(hu_HW: Field, plain_HW: Field) -> float:
    """Share of a bleed's pixels that are neither blood nor brain."""
    part_HW = (hu_HW - plain_HW) / 34.0
    return float(np.sum((part_HW > 0.2) & (part_HW < 0.7)) / np.sum(part_HW > 0.2))


@pytest.mark.slow
def test_the_edge_of_a_bleed_is_softer_in_thick_slices_and_smooth_kernels() -> None:
    height = BLOB.height + 0.75 * BLOB.half_height
    bleed = BLOB._replace(radius=8.0)  # without mass effect
    shares = {
        (thickness_mm, edge_mm): soft_share(
            *(
                draw(height, *shown, thickness_mm=thickness_mm, edge_mm=edge_mm)[0]
                for shown in ([bleed], [])
            )
        )
        for thickness_mm in (2.5, 5.0)
        for edge_mm in (0.7, 2.0)
    }
    assert shares[2.5, 0.7] < shares[5.0, 0.7] < shares[5.0, 2.0]
    assert shares[2.5, 0.7] < shares[2.5, 2.0]


@pytest.mark.slow
def test_a_bleed_goes_from_brain_to_blood_over_one_to_four_millimetres() -> None:
    bleed = BLOB._replace(radius=8.0)
    change_HW = draw(60.0, bleed)[0] - draw(60.0)[0]
    area = np.sum(change_HW > 16.0) * FINE.spacing_mm**2
    edge = np.sum((change_HW > 4.0) & (change_HW < 28.0)) * FINE.spacing_mm**2
    perimeter_mm = 2.0 * (np.pi * area) ** 0.5
    assert 1.0 < edge / perimeter_mm < 4.0


def test_a_bleed_fades_towards_its_ends_and_is_labelled_only_where_it_is_seen() -> None:
    bleed = BLOB._replace(radius=8.0)
    peaks = {}
    for height in np.arange(60.0, 80.0, 1.0):
        shown_HW, seen = draw(height, bleed)
        plain_HW, nothing = draw(height)
        assert nothing == ()
        change_HW = np.abs(shown_HW - plain_HW)
        if seen:
            peaks[height] = np.percentile(change_HW[change_HW > MIN_CONTRAST_HU], 80)
            area_mm2 = np.sum(change_HW > MIN_CONTRAST_HU) * FINE.spacing_mm**2
            assert area_mm2 >= MIN_AREA_MM2
        else:
            np.testing.assert_array_equal(shown_HW, plain_HW)
    heights = sorted(peaks)
    assert 70.0 < heights[-1] < 78.0
    assert heights == list(np.arange(60.0, heights[-1] + 1.0))
    assert peaks[heights[-1]] < 0.8 * peaks[60.0]


def test_the_density_of_blood_follows_its_age() -> None:
    bleeds = [
        draw_bleed(np.random.default_rng(seed), name)
        for name in SUBTYPES
        for seed in range(120)
    ]
    for bleed in bleeds:
        assert AGES[bleed.age].min_hu <= bleed.hu <= AGES[bleed.age].max_hu
    assert {b.age for b in bleeds if b.subtype == "subdural"} == set(AGES)
    assert {b.age for b in bleeds if b.subtype == "epidural"} == {"acute"}
    means = [np.mean([b.hu for b in bleeds if b.age == age]) for age in AGES]
    assert 58.0 < means[0] < 66.0
    assert means == sorted(means, reverse=True)
    assert means[-1] < 30.0


@pytest.mark.parametrize(("age", "hu"), [("acute", 62.0), ("chronic", 18.0)])
def test_fresh_blood_is_brighter_than_the_brain_and_old_blood_darker(
    age: str, hu: float
) -> None:
    bleed = Bleed(
        subtype="subdural",
        age=age,
        hu=hu,
        height=75.0,
        half_height=35.0,
        half_angle=1.0,
        thickness=11.0,
    )
    shown_HW, seen = draw(75.0, bleed)
    crescent = at(shown_HW, 55.0, 0.0)
    cortex = np.median([at(draw(75.0)[0], 52.0, y) for y in (-20.0, 0.0, 20.0)])
    assert seen == ("subdural",)
    assert crescent == pytest.approx(hu, abs=9.0)
    assert crescent > cortex + 12.0 if age == "acute" else crescent < cortex - 8.0


def test_left_and_right_differ_in_each_head_but_not_on_average() -> None:
    half = NUM_ANGLES // 2
    differences = []
    for seed in range(40):
        anatomy = draw_anatomy(np.random.default_rng(seed))
        skull_A = outlines(anatomy, 60.0).skull_A
        mirrored_A = np.roll(skull_A[::-1], half + 1)
        differences.append(skull_A[0] - mirrored_A[0])
        assert np.abs(skull_A - mirrored_A).max() > 0.1
    assert np.std(differences) > 0.3
    assert abs(np.mean(differences)) < 0.5


def test_one_lateral_ventricle_is_larger_than_the_other() -> None:
    anatomy = draw_anatomy(np.random.default_rng(1))._replace(atrophy=0.5)
    uneven = anatomy._replace(asymmetry=[0.1] * len(anatomy.asymmetry))
    even = anatomy._replace(asymmetry=[0.0] * len(anatomy.asymmetry))
    shares = []
    for each in (even, uneven):
        water_HW = draw(72.0, anatomy=each)[0] < 18.0
        middle_HW = water_HW[130:250, 192 - 32 : 192 + 32]
        left, right = middle_HW[:, :32].sum(), middle_HW[:, 32:].sum()
        shares.append(right / (left + right))
    assert shares[0] == pytest.approx(0.5, abs=0.06)
    assert shares[1] > shares[0] + 0.08


def test_a_tilted_head_is_cut_obliquely() -> None:
    anatomy = draw_anatomy(np.random.default_rng(1))
    front, back, right, left = (NUM_ANGLES * k // 4 for k in (3, 1, 0, 2))
    level_A = outlines(anatomy, 95.0).skull_A
    pitched_A = outlines(anatomy, 95.0, pitch=0.15).skull_A
    assert pitched_A[back] < level_A[back] - 3.0
    assert pitched_A[front] > level_A[front] + 3.0
    rolled_A = outlines(anatomy, 95.0, roll=0.1).skull_A
    assert rolled_A[right] < level_A[right] - 2.0
    assert rolled_A[left] > level_A[left] + 2.0


def test_a_rolled_head_shows_only_one_eye() -> None:
    level_HW = draw(8.0)[0]
    rolled_HW = draw(17.6, grid=FINE._replace(roll=0.3))[0]
    for side, is_seen in ((-1.0, True), (1.0, False)):
        assert 0.0 < at(level_HW, side * 32.0, -63.0) < 30.0  # vitreous
        assert (0.0 < at(rolled_HW, side * 32.0, -63.0) < 30.0) == is_seen


def test_a_bleed_too_small_to_see_is_not_in_the_slice() -> None:
    shown = {r: draw(60.0, BLOB._replace(radius=r))[1] for r in (1.8, 6.0)}
    assert shown == {1.8: (), 6.0: ("intraparenchymal",)}


def test_the_series_are_tilted_and_differ_in_kernel_and_thickness() -> None:
    every: list[Series] = list(plan(3000, 0, 128, quirks=False))
    assert {series.kernel for series in every} == set(KERNELS.values())
    assert 0.03 < np.std([series.grid.roll for series in every]) < 0.08
    assert 0.05 < np.std([series.grid.pitch for series in every]) < 0.15
    assert any(series.is_helical for series in every)
    thin = [min(thicknesses(series.heights)) for series in every]
    assert 0.1 < np.mean(np.array(thin) < 3.5) < 0.5
    assert sum(kernel.share for kernel in KERNELS.values()) == pytest.approx(1.0)


def test_the_skull_base_has_fossae_ridges_orbits_and_air() -> None:
    low_HW, high_HW = draw(10.0)[0], draw(60.0)[0]
    for side in (-1.0, 1.0):
        assert 10.0 < at(low_HW, side * 36.0, -20.0) < 70.0  # temporal lobe
        assert 10.0 < at(low_HW, side * 22.0, 45.0) < 70.0  # cerebellum
        ridge = [at(low_HW, side * 34.0, y) for y in np.arange(-6.0, 12.0)]
        assert max(ridge) > 300.0  # petrous bone between them
        assert at(low_HW, side * 32.0, -46.0) < 60.0  # orbit
        assert at(high_HW, side * 34.0, 3.0) < 70.0
    assert min(at(low_HW, x, -23.0) for x in range(-10, 11)) < -500.0  # sphenoid sinus
    assert at(draw(-22.0)[0], 0.0, 22.0) < 70.0  # cord in the foramen magnum
    ring = [at(draw(-22.0)[0], 0.0, y) for y in np.arange(30.0, 70.0, 2.0)]
    assert max(ring) > 300.0  # occipital bone behind it
