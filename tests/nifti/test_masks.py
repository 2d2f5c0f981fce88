"""A mask gives the labels of the slices of its volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ichfast.errors import RejectError
from ichfast.labels import CLASSES
from ichfast.nifti.masks import read_mask
from tests.mutations import mutations
from tests.nifti.test_orientation import ORDERS, SIGNS, affine_of
from tests.nifti.volumes import RAS_AFFINE, head_hu, nifti, packed

SUBTYPES = CLASSES[1:]

VOLUME = nifti(head_hu((6, 5, 4)))


def mask_voxels() -> np.ndarray:
    """Slices 0 to 3: none, class 2, classes 1 and 5, class 4; one voxel each."""
    voxels = np.zeros((6, 5, 4), np.uint8)
    voxels[1, 2, 1] = 2
    voxels[5, 0, 2], voxels[0, 4, 2] = 1, 5
    voxels[3, 3, 3] = 4
    return voxels


EXPECTED_ZK = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1],
        [1, 0, 0, 0, 1, 0],
    ]
)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("pack", [bytes, packed])
def test_a_class_is_one_where_a_voxel_has_its_value(dtype: Any, pack: Any) -> None:
    mask = pack(nifti(mask_voxels().astype(dtype)))
    np.testing.assert_array_equal(read_mask(mask, VOLUME, SUBTYPES), EXPECTED_ZK)


@pytest.mark.parametrize("order", ORDERS)
def test_labels_are_of_the_slices_of_the_volume(order: tuple[int, ...]) -> None:
    for signs in SIGNS:
        affine = affine_of(order, signs)
        axis = order.index(2)  # of slices
        voxels = np.moveaxis(mask_voxels(), 2, axis)
        volume = nifti(head_hu(voxels.shape), affine)
        found_ZK = read_mask(nifti(voxels, affine), volume, SUBTYPES)
        np.testing.assert_array_equal(found_ZK, EXPECTED_ZK)


def test_of_any_alone_the_subtypes_are_unknown() -> None:
    mask = nifti((mask_voxels() > 0).astype(np.uint8))
    labels_ZK = read_mask(mask, VOLUME, ("any",))
    assert labels_ZK[:, 0].tolist() == [0, 1, 1, 1]
    assert np.isnan(labels_ZK[:, 1:]).all()


def test_of_some_subtypes_any_is_unknown() -> None:
    mask = nifti(np.minimum(mask_voxels(), 2))
    labels_ZK = read_mask(mask, VOLUME, ("intraparenchymal", "intraventricular"))
    assert labels_ZK[:, 2].tolist() == [0, 0, 1, 0]
    assert labels_ZK[:, 3].tolist() == [0, 1, 1, 1]
    assert np.isnan(labels_ZK[:, [0, 1, 4, 5]]).all()


def test_two_values_may_be_of_one_class() -> None:
    classes = ("epidural", "epidural", "subdural", "subarachnoid", "subdural")
    labels_ZK = read_mask(nifti(mask_voxels()), VOLUME, classes)
    assert labels_ZK[:, 1].tolist() == [0, 1, 1, 0]
    assert labels_ZK[:, 5].tolist() == [0, 0, 1, 0]


def test_values_are_numbers_times_slope_plus_intercept() -> None:
    mask = nifti(mask_voxels().astype(np.int16) * 4 - 8, slope=0.25, intercept=2)
    np.testing.assert_array_equal(read_mask(mask, VOLUME, SUBTYPES), EXPECTED_ZK)


def refusal(mask: bytes, volume: bytes = VOLUME) -> str:
    with pytest.raises(RejectError) as caught:
        read_mask(mask, volume, SUBTYPES)
    return caught.value.detail


@pytest.mark.parametrize("value", [6, 255, -1, 0.5])
def test_values_beyond_the_classes_are_refused(value: float) -> None:
    voxels = mask_voxels().astype(np.float32)
    voxels[2, 2, 2] = value
    assert (
        refusal(nifti(voxels)) == f"it has the value {value}, and there are 5 classes"
    )


def test_a_value_that_is_no_number_is_refused() -> None:
    voxels = mask_voxels().astype(np.float32)
    voxels[2, 2, 2] = np.nan
    assert refusal(nifti(voxels)) == "it has the value nan, and there are 5 classes"


def test_another_shape_is_refused_with_both() -> None:
    mask = nifti(np.zeros((6, 5, 3), np.uint8))
    assert refusal(mask) == "it has 6 x 5 x 3 voxels, its volume 6 x 5 x 4"


def test_another_affine_is_refused() -> None:
    moved, flipped = RAS_AFFINE.copy(), RAS_AFFINE.copy()
    moved[2, 3] = 5
    flipped[0, 0] *= -1
    for affine in (moved, flipped):
        text = refusal(nifti(mask_voxels(), affine))
        assert text.startswith("its affine is not that of its volume: voxels lie ")
    assert refusal(nifti(mask_voxels(), moved)).endswith(" 5 mm apart")


def test_a_rounded_affine_is_that_of_the_volume() -> None:
    affine = RAS_AFFINE + 1e-3
    affine[3] = (0, 0, 0, 1)
    found_ZK = read_mask(nifti(mask_voxels(), affine), VOLUME, SUBTYPES)
    np.testing.assert_array_equal(found_ZK, EXPECTED_ZK)


def test_a_mask_or_volume_that_is_no_nifti_is_refused() -> None:
    assert refusal(b"text") == "it is no NIfTI file"
    assert refusal(nifti(mask_voxels()), b"text") == "its volume is no NIfTI file"
    assert "expected 120" in refusal(nifti(mask_voxels())[:-1])


def test_a_damaged_mask_gives_labels_or_a_rejection() -> None:
    content = nifti(mask_voxels())
    outcomes = set()
    for damaged in mutations(content, 7):
        try:
            found_ZK = read_mask(damaged, VOLUME, SUBTYPES)
        except RejectError as error:
            outcomes.add(error.code)
        else:
            outcomes.add("labels")
            assert found_ZK.shape == (4, 6)
    assert {"labels", "bad-header", "decoder-error", "truncated-pixels"} <= outcomes
