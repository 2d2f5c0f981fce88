"""Grad-CAM: where in a slice a model finds evidence for a class.

The map is the sum of the channels of the last feature map, each weighted by the mean
gradient of the logit over its positions, and cut off below zero. With an average pool
and a linear head it is the class activation map.

It shows what changes the logit, on the coarse grid of the feature map (a cell is 32
pixels of the model's input). It is no outline of a bleed, and no proof of a good
reason. A backbone that ends in tokens, such as a vision transformer, has no feature map
and so no map of this kind.

Shape letters: B slices, C channels of the image, D of the feature map, K classes,
H rows, W columns, h and w rows and columns of the feature map.

Source:
    Selvaraju et al. 2017, "Grad-CAM"; Zhou et al. 2016 for the linear head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from ichfast.loading.loader import make_loader
from ichfast.runs.record import RunRecord
from ichfast.store.store import Store


def activations_of(
    slice_ids: Sequence[str],
    model: nn.Module,
    store: Store,
    record: RunRecord,
    device: torch.device,
) -> npt.NDArray[np.float32] | None:
    """Compute the maps of some slices, prepared as for validation.

    Args:
        slice_ids: B distinct ids of the store.
        model: the model of the run, on `device`; it is left in evaluation mode.
        store: the store of the run.
        record: the record of the run, which tells how slices become the model's input.
        device: where to compute, in float32.

    Returns:
        Shape (B, K, h, w), float32, at least zero, in the order of `slice_ids`; None
        where the backbone has no last feature map.
    """
    position_of = pd.Index(store.table["slice_id"].astype(str))
    positions_B = position_of.get_indexer(pd.Index(slice_ids)).astype(np.int64)
    batch_size = min(record.recipe.data.batch_size, len(positions_B))
    config = replace(record.recipe.data, batch_size=batch_size, cache="none")
    model.eval()
    two_part: Any = model
    sorted_B = np.sort(positions_B)
    with make_loader(
        store,
        sorted_B,
        config,
        normalization=record.normalization,
        device=device.type,
    ) as loader:
        maps = []
        for batch in loader.epoch(0):
            maps_BKhw = class_activations(two_part, batch.images_BCHW.float())
            if maps_BKhw is None:
                return None
            maps.append(maps_BKhw.cpu())
    return torch.cat(maps).numpy()[np.searchsorted(sorted_B, positions_B)]


class TwoPart(Protocol):
    """A model that can be run in two parts, as `models.build` makes them."""

    def forward_features(self, images_BCHW: Tensor, /) -> Any:
        """The features before pooling: a map, tokens (B, N, D), or a list."""

    def forward_head(self, features: Any, /) -> Tensor:
        """Logits, shape (B, K)."""


def class_activations(model: TwoPart, images_BCHW: Tensor) -> Tensor | None:
    """Compute the maps of a batch; only the head is differentiated.

    Args:
        model: in evaluation mode.
        images_BCHW: windowed and normalised images, on the model's device.

    Returns:
        Shape (B, K, h, w), float32, at least zero, not normalised, on that device;
        None where the features are no map.
    """
    with torch.no_grad():
        features = model.forward_features(images_BCHW)
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    features = features.detach().float().requires_grad_()
    channel_dim = 3 if getattr(model, "output_fmt", "NCHW") == "NHWC" else 1
    with torch.enable_grad():
        logits_BK = model.forward_head(features)
        maps = [
            _weighted(features, logits_B.sum(), channel_dim)
            for logits_B in logits_BK.unbind(1)
        ]
    return torch.stack(maps, dim=1)


def _weighted(features: Tensor, logit: Tensor, channel_dim: int) -> Tensor:
    (gradient,) = torch.autograd.grad(logit, features, retain_graph=True)
    position_dims = (2, 3) if channel_dim == 1 else (1, 2)
    weight = gradient.mean(dim=position_dims, keepdim=True)
    return (weight * features.detach()).sum(dim=channel_dim).relu()
