"""Test-time augmentation looks where the reference looks, and mixes as it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from ichfast.augment.config import EXP_30, AugmentConfig
from ichfast.augment.reference import halve
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import make_loader
from ichfast.models.precision import Amp
from ichfast.store.store import Store
from ichfast.training.inference import mix_passes, predict_logits, tta_passes

CPU = Amp("cpu", torch.float32)


class Revealing(nn.Module):
    """Gives the brightness of six places, so that it shows what it was shown."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, 0, :: images_BCHW.shape[2] // 3, 3][:, :3].repeat(1, 2)


def test_the_reference_takes_one_plain_and_eight_zoomed_looks() -> None:
    passes = tta_passes("reference", EXP_30)
    assert len(passes) == 9
    assert passes[0].augment == AugmentConfig()
    assert passes[0].weight == 0.4
    assert sum(look.weight for look in passes) == pytest.approx(1.0)
    zoomed = [look.augment for look in passes[1:]]
    assert {(a.zoom_focus, a.flip_probability) for a in zoomed} == {
        ((x, y), flip) for x in (0.0, 1.0) for y in (0.0, 1.0) for flip in (0.0, 1.0)
    }
    for augment in zoomed:
        assert (augment.min_zoom, augment.max_zoom) == (1.35, 1.35)
        # The other draws of training stay.
        assert augment.max_rotation_deg == EXP_30.max_rotation_deg
        assert augment.cutout_probability == EXP_30.cutout_probability


def test_passes_are_mixed_by_weight() -> None:
    passes = tta_passes("reference", EXP_30)
    probs = [np.full((2, 6), 0.5), *(np.full((2, 6), k / 10) for k in range(8))]
    expected = 0.4 * 0.5 + 0.6 * np.mean([k / 10 for k in range(8)])
    np.testing.assert_allclose(mix_passes(passes, probs), expected)


def test_a_mirrored_pass_sees_the_mirror_image(tiny_store: Store) -> None:
    config = DataConfig(size=64, batch_size=5, level=256)
    plain, mirrored = tta_passes("flips", EXP_30)
    seen = []
    for look in (plain, mirrored):
        with make_loader(
            tiny_store, np.arange(9), config, augment=look.augment
        ) as loader:
            seen.append(torch.cat([batch.images_BCHW for batch in loader]))
    assert torch.equal(seen[0].flip(3), seen[1])
    assert not torch.equal(seen[0], seen[1])


def test_the_nine_looks_are_where_the_reference_looks_and_are_mixed_as_there(
    tiny_store: Store,
) -> None:
    """A model that gives three places of what it is shown reveals each pass."""
    slices_N, size = np.arange(3), 64
    config = DataConfig(size=size, batch_size=2, level=256)
    plain_HW = [tiny_store.slice_HW(int(index), 256) for index in slices_N]
    passes = tta_passes("reference", AugmentConfig())
    probs = []
    for number, look in enumerate(passes):
        with make_loader(tiny_store, slices_N, config, augment=look.augment) as loader:
            _, logits_NK, _ = predict_logits(Revealing(), loader, CPU, epoch=number)
        probs.append(logits_NK.double().sigmoid().numpy())

    looks = [(1.0, 0, 0, False)]
    looks += [(1.35, x, y, flipped) for flipped in (False, True) for x, y in CORNERS]
    expected = [
        np.stack([revealed(stored_HW, *look, size) for stored_HW in plain_HW])
        for look in looks
    ]
    for found_NK, expected_NK in zip(probs, expected, strict=True):
        np.testing.assert_allclose(found_NK, expected_NK, atol=0.02)
    mixed = 0.4 * expected[0] + 0.6 * np.mean(expected[1:], axis=0)
    np.testing.assert_allclose(mix_passes(passes, probs), mixed, atol=0.02)


CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Right, and down."""


def revealed(
    stored_HW: npt.NDArray[np.uint16],
    scale: float,
    right: int,
    down: int,
    flipped: bool,
    size: int,
) -> npt.NDArray[np.float64]:
    """What `Revealing` answers to a crop of one corner, from plain indexing."""
    while len(stored_HW) >= 2 * size:
        stored_HW = halve(stored_HW)
    side = size / scale
    rows = (np.arange(size) + 0.5) / scale + down * (size - side) - 0.5
    columns = (np.arange(size) + 0.5) / scale + right * (size - side) - 0.5
    sampled_HW = map_coordinates(
        stored_HW.astype(np.float64),
        np.meshgrid(rows, columns, indexing="ij"),
        order=1,
        mode="constant",
    )
    if flipped:
        sampled_HW = sampled_HW[:, ::-1]
    brain_HW = np.clip((sampled_HW - 1024) / 80, 0, 1)
    places = brain_HW[:: size // 3, 3][:3]
    return 1 / (1 + np.exp(-np.tile(places, 2)))


def test_logits_come_back_with_their_positions_in_order(tiny_store: Store) -> None:
    config = DataConfig(size=64, batch_size=4, level=256)
    with make_loader(tiny_store, np.arange(3, 17), config) as loader:
        positions_N, logits_NK, targets_NK = predict_logits(Revealing(), loader, CPU)
        images = torch.cat([batch.images_BCHW for batch in loader])
    assert positions_N.tolist() == list(range(3, 17))
    assert torch.equal(logits_NK, Revealing()(images.float()))
    np.testing.assert_array_equal(targets_NK, tiny_store.labels_NK()[3:17])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="many"):
        tta_passes("many", replace(EXP_30))
