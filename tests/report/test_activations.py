"""The maps of a store's slices are those of the slices asked for, in their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ichfast.recipes.resolve import resolve_recipe
from ichfast.report.activations import activations_of
from ichfast.runs.folder import RunRecord
from ichfast.store.store import Store
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
        store_plan={},
        counts={},
        environment={},
    )


def test_maps_come_in_the_order_that_was_asked_for(
    tiny_store: Store, record: RunRecord
) -> None:
    ids = tiny_store.table["slice_id"].astype(str).tolist()
    asked = [ids[place] for place in (11, 2, 7, 3, 20, 5, 1)]  # two batches, one short
    model: Any = Brightness()
    maps = activations_of(asked, model, tiny_store, record, CPU)
    assert maps.shape == (7, 1, 32, 32)
    assert maps.dtype == np.float32
    for slice_id, map_Khw in zip(asked, maps, strict=True):
        alone = activations_of([slice_id], model, tiny_store, record, CPU)
        np.testing.assert_array_equal(alone[0], map_Khw)
    assert len({map_Khw.tobytes() for map_Khw in maps}) == 7
