"""Mixup: blend each slice and its targets with another slice of the batch.

Shape letters: B slices of the batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ichfast.system.upload import upload


def mix_up(
    images_BCHW: Tensor, targets_BK: Tensor, *, alpha: float, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Blend each slice and its targets with another slice of the batch.

    Args:
        images_BCHW: any float dtype. Not changed.
        targets_BK: float32, NaN where unknown. Not changed.
        alpha: a slice's own weight is the larger part of a Beta(alpha, alpha) draw.
        seed: decides weights and partners.

    Returns:
        Images in the memory format of `images_BCHW`, and targets. A target is NaN where
        that of either slice is.

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018). As in fastai
        v1, each slice has its own weight, and the larger part is the slice's own.
    """
    draws = np.random.default_rng(seed)
    share_B = draws.beta(alpha, alpha, size=len(images_BCHW)).astype(np.float32)
    share = upload(np.maximum(share_B, 1 - share_B), images_BCHW.device)
    partner = upload(draws.permutation(len(images_BCHW)), images_BCHW.device)
    image_share = share.to(images_BCHW.dtype)[:, None, None, None]
    mixed_BCHW = torch.lerp(images_BCHW[partner], images_BCHW, image_share)
    return mixed_BCHW, torch.lerp(targets_BK[partner], targets_BK, share[:, None])
