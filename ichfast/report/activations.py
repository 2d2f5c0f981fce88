"""The class activation maps of some slices of a run's store.

Shape letters: B slices, K classes, h and w rows and columns of the feature map.

Grad-CAM: where in a slice a model finds what speaks for a class.

The last feature map, each of its channels weighted by the mean of the logit's gradient
over the positions, summed, and cut off below zero. Behind an average pool and a linear
head that is the class activation map: the sum of the channels weighted by the head.

It shows what moved the answer, at the feature map's coarse grid (32 pixels of the
model's input a cell). It is no outline of a bleed, and no proof of a right reason.

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
) -> npt.NDArray[np.float32]:
    """Map where a run's model finds its classes, in slices as validation sees them.

    Args:
        slice_ids: B ids, all in the store; distinct.
        model: the run's, on `device`; put into evaluation mode here, and left so.
        store: that of the run.
        record: says how slices become the model's input.
        device: where to compute, in float32.

    Returns: Shape (B, K, h, w), float32, as `report.activations.class_activations`; in
        the order of `slice_ids`.
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
        maps = [
            class_activations(two_part, batch.images_BCHW.float()).cpu()
            for batch in loader.epoch(0)
        ]
    return torch.cat(maps).numpy()[np.searchsorted(sorted_B, positions_B)]


class TwoPart(Protocol):
    """A model that can be cut behind its last feature map, as `models` builds them."""

    def forward_features(self, images_BCHW: Tensor, /) -> Tensor:
        """The last feature map, shape (B, D, h, w)."""

    def forward_head(self, features_BDhw: Tensor, /) -> Tensor:
        """Logits, shape (B, K)."""


def class_activations(model: TwoPart, images_BCHW: Tensor) -> Tensor:
    """Map where in each slice the evidence for each class lies.

    Only the head is differentiated; the body runs without gradients.

    Args:
        model: in evaluation mode.
        images_BCHW: windowed and normalised, on the model's device.

    Returns:
        Shape (B, K, h, w), float32, at least zero, not normalised, on the device.
    """
    with torch.no_grad():
        features_BDhw = model.forward_features(images_BCHW)
    features_BDhw = features_BDhw.detach().float().requires_grad_()
    with torch.enable_grad():
        logits_BK = model.forward_head(features_BDhw)
        maps = [
            _weighted(features_BDhw, logits_B.sum()) for logits_B in logits_BK.unbind(1)
        ]
    return torch.stack(maps, dim=1)


def _weighted(features_BDhw: Tensor, logit: Tensor) -> Tensor:
    (gradient_BDhw,) = torch.autograd.grad(logit, features_BDhw, retain_graph=True)
    weight_BD11 = gradient_BDhw.mean(dim=(2, 3), keepdim=True)
    return (weight_BD11 * features_BDhw.detach()).sum(dim=1).relu()
