"""Activation maps belong to the right slices and equal the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ichfast.models.build import build_model
from ichfast.models.config import ARCHS
from ichfast.recipes.resolve import resolve_recipe
from ichfast.recipes.settings import from_dict
from ichfast.report.activations import activations_of, class_activations
from ichfast.runs.record import Counts, Environment, RunRecord
from ichfast.store.store import Store
from ichfast.system.environment import describe_environment
from ichfast.windows import Normalization

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Its only class likes bright pixels; the feature map is the image itself."""

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, :1]

    def forward_head(self, features_BDhw: Tensor) -> Tensor:
        return features_BDhw.sum(dim=(2, 3))


@pytest.fixture
def record(tiny_store: Store) -> RunRecord:
    recipe = resolve_recipe(
        "fast",
        arch="efficientnet-b0",
        size=32,
        device_type="cpu",
        assignments=["data.batch_size=4"],
    )
    num_windows = len(recipe.data.windows)
    return RunRecord(
        recipe=recipe,
        normalization=Normalization(
            mean=(0.0,) * num_windows, std=(1.0,) * num_windows
        ),
        store=str(tiny_store.path),
        store_digest="",
        counts=Counts(
            train_slices=2,
            train_patients=1,
            valid_slices=2,
            valid_patients=1,
            valid_patients_seen=0,
        ),
        environment=from_dict(Environment, describe_environment()),
    )


def test_maps_have_the_order_of_the_slice_ids(
    tiny_store: Store, record: RunRecord
) -> None:
    ids = tiny_store.table["slice_id"].astype(str).tolist()
    asked = [ids[place] for place in (11, 2, 7, 3, 20, 5, 1)]  # two batches, one short
    model: Any = Brightness()
    maps = activations_of(asked, model, tiny_store, record, CPU)
    assert maps is not None
    assert maps.shape == (7, 1, 32, 32)
    assert maps.dtype == np.float32
    for slice_id, map_Khw in zip(asked, maps, strict=True):
        alone = activations_of([slice_id], model, tiny_store, record, CPU)
        assert alone is not None
        np.testing.assert_array_equal(alone[0], map_Khw)
    assert len({map_Khw.tobytes() for map_Khw in maps}) == 7


class BrightSpots(nn.Module):
    """Two feature channels: bright pixels and dark ones; class k likes channel k.

    The third class likes neither: its weights are negative.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 3, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        return torch.cat([images_BCHW.relu(), (-images_BCHW).relu()], dim=1)

    def forward_head(self, features_BDhw: Tensor) -> Tensor:
        logits_BK: Tensor = self.fc(features_BDhw.mean(dim=(2, 3)))
        return logits_BK


def test_the_map_of_each_slice_is_the_known_one() -> None:
    images = torch.zeros(2, 1, 4, 5)
    images[0, 0, 1, 3] = 7.0  # bright, for the first class
    images[1, 0, 2, 0] = -3.0  # dark, for the second
    maps_BKhw = class_activations(BrightSpots(), images)
    expected = torch.zeros(2, 3, 4, 5)
    expected[0, 0, 1, 3] = 7.0 / 20  # a mean's gradient is one over its 20 pixels
    expected[1, 1, 2, 0] = 2 * 3.0 / 20
    torch.testing.assert_close(maps_BKhw, expected)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_with_a_linear_head_the_map_is_the_weighted_sum_of_the_features(
    arch: str,
) -> None:
    torch.manual_seed(0)
    model: Any = build_model(arch).eval()
    images = torch.randn(2, 1, 64, 96)
    maps_BKhw = class_activations(model, images)
    with torch.no_grad():
        features_BDhw = model.forward_features(images)
        logits_BK = model(images)
        weight_KD = model.get_classifier().weight
        num_cells = features_BDhw[0, 0].numel()
        evidence = torch.einsum("kd,bdhw->bkhw", weight_KD, features_BDhw) / num_cells
    assert maps_BKhw is not None
    assert maps_BKhw.shape == (2, 6, 2, 3)
    torch.testing.assert_close(maps_BKhw, evidence.relu(), rtol=1e-4, atol=1e-6)
    # The logit is the evidence summed, and the bias.
    bias_K = logits_BK - evidence.sum(dim=(2, 3))
    torch.testing.assert_close(bias_K[0], bias_K[1], rtol=1e-3, atol=1e-5)


def test_a_head_that_is_not_linear_has_a_map_too() -> None:
    model: Any = build_model("resnext50", head="concat-pool").eval()
    maps_BKhw = class_activations(model, torch.randn(1, 1, 64, 64))
    assert maps_BKhw is not None
    assert maps_BKhw.shape == (1, 6, 2, 2)
    assert (maps_BKhw >= 0).all()
    assert maps_BKhw.any()


def test_the_model_keeps_no_gradient() -> None:
    model = BrightSpots()
    class_activations(model, torch.ones(1, 1, 2, 2))
    assert model.fc.weight.grad is None
