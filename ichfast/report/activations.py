"""The class activation maps of some slices of a run's store.

Shape letters: B slices, K classes, h and w rows and columns of the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ichfast.gradcam import class_activations
from ichfast.loading.loader import make_loader
from ichfast.runs.folder import RunRecord
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

    Returns:
        Shape (B, K, h, w), float32, as `gradcam.class_activations`; in the order of
        `slice_ids`.
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
