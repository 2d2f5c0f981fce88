"""Slices of a volume lie as those of DICOM do, however its array lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ichfast.nifti.volume import read_volume
from tests.nifti.reference_orientation import slices_by_position
from tests.nifti.volumes import RAS_AFFINE, head_hu, nifti, read_hu, rejection

ORDERS = list(itertools.permutations(range(3)))
SIGNS = list(itertools.product((1, -1), repeat=3))


def affine_of(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """An affine whose array axis k runs along body axis `order[k]`, by its sign."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (body, sign) in enumerate(zip(order, signs, strict=True)):
        affine[body, axis] = sign * (0.5, 0.4, 5.0)[body]
    affine[:3, 3] = (-31, 17, 250)
    return affine


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("signs", SIGNS)
def test_all_orders_and_flips_of_the_axes_agree_with_the_reference(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    voxels = head_hu((3, 4, 5))
    affine = affine_of(order, signs)
    expected_ZHW = slices_by_position(voxels, affine)
    np.testing.assert_array_equal(read_hu(nifti(voxels, affine)), expected_ZHW)


def test_the_first_voxel_of_a_slice_is_right_front_and_low() -> None:
    voxels = head_hu((3, 4, 5))
    expected_ZHW = voxels[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(read_hu(nifti(voxels)), expected_ZHW)


def rotation(axis: int, degrees: float) -> np.ndarray:
    """A rotation about a body axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = (other for other in range(3) if other != axis)
    matrix = np.eye(4)
    matrix[a, a] = matrix[b, b] = c
    matrix[a, b], matrix[b, a] = -s, s
    return matrix


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("degrees", [-40, -12, 12, 40])
def test_a_tilted_volume_gives_its_own_slices(axis: int, degrees: float) -> None:
    voxels = head_hu((3, 4, 5))
    content = nifti(voxels, rotation(axis, degrees) @ RAS_AFFINE)
    np.testing.assert_array_equal(read_hu(content), read_hu(nifti(voxels)))
    one, *_ = read_volume(content, "head.nii")
    assert one.series_header.row_spacing_mm == pytest.approx(0.4)
    assert one.series_header.column_spacing_mm == pytest.approx(0.5)
    assert one.series_header.thickness_mm == pytest.approx(5)


def test_an_oblique_volume_is_rejected() -> None:
    affine = rotation(0, 44) @ rotation(1, 44) @ RAS_AFFINE
    error = rejection(nifti(head_hu((3, 4, 5)), affine))
    assert error.code == "not-axial"
    assert error.detail == (
        "its affine is 46 degrees from axial, expected at most 45; use the volume as "
        "it was scanned"
    )
    accepted = list(
        read_volume(nifti(head_hu((3, 4, 5)), affine), "a", frozenset(["not-axial"]))
    )
    assert {each.quirks for each in accepted} == {("not-axial",)}


def test_the_slices_of_a_tilted_gantry_are_as_far_apart_as_along_their_normal() -> None:
    affine = RAS_AFFINE.copy()
    affine[:3, 1] = rotation(0, 20)[:3, 1] * 0.4  # columns lean, the table does not
    voxels = head_hu((3, 4, 5))
    slices = list(read_volume(nifti(voxels, affine), "head.nii"))
    np.testing.assert_array_equal(
        read_hu(nifti(voxels, affine)), read_hu(nifti(voxels))
    )
    steps_mm = np.diff([each.position_mm for each in slices])
    np.testing.assert_allclose(steps_mm, 5 * np.cos(np.radians(20)), rtol=1e-6)
    assert slices[0].series_header.orientation[5] == pytest.approx(
        -np.sin(np.radians(20))
    )


def test_positions_are_those_of_the_affine() -> None:
    affine = RAS_AFFINE.copy()
    affine[:3, 3] = (-120, -90, 33.5)
    slices = list(read_volume(nifti(head_hu((3, 4, 5)), affine), "head.nii"))
    assert [each.position_mm for each in slices] == [33.5, 38.5, 43.5, 48.5, 53.5]
    assert [each.slice_id for each in slices] == [f"head/{k}" for k in range(5)]
    assert slices[0].series_header.orientation == (1, 0, 0, 0, 1, 0)


def test_the_order_of_the_file_is_kept_where_it_runs_to_the_feet() -> None:
    affine = RAS_AFFINE.copy()
    affine[2, 2] = -5
    slices = list(read_volume(nifti(head_hu((3, 4, 5)), affine), "head.nii"))
    assert [each.slice_id for each in slices] == [f"head/{k}" for k in range(5)]
    assert [each.position_mm for each in slices] == [0, -5, -10, -15, -20]


@pytest.mark.parametrize(("unit", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_lengths_are_in_the_unit_of_the_header(unit: int, mm: float) -> None:
    affine = RAS_AFFINE / mm
    one, *_ = read_volume(nifti(head_hu((3, 4, 5)), affine, xyzt_units=unit), "a.nii")
    assert one.series_header.thickness_mm == pytest.approx(5)


def test_without_an_sform_the_qform_places_the_voxels() -> None:
    """BHSD's files have a tilted qform whose first axis runs to the left."""
    affine = rotation(0, 20) @ np.diag([-0.5, 0.4, 5, 1])
    affine[:3, 3] = (125, -96, -63)
    voxels = head_hu((3, 4, 5))
    nothing = np.zeros(4)
    content = nifti(
        *(voxels, affine),
        sform_code=0,
        srow_x=nothing,
        srow_y=nothing,
        srow_z=nothing,
    )
    np.testing.assert_array_equal(
        read_hu(content), voxels[:, ::-1].transpose(2, 1, 0).astype(int)
    )
    found = [each.position_mm for each in read_volume(content, "a.nii")]
    expected = [each.position_mm for each in read_volume(nifti(voxels, affine), "a")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
