"""The loss: binary cross-entropy, averaged over the labels that are known.

Shape letters: B slices, D bags, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def known_loss(logits_BK: Tensor, targets_BK: Tensor, weight_K: Tensor) -> Tensor:
    """Weighted mean of the binary cross-entropy over the known targets.

    The sum of weight times loss over all known targets, divided by the sum of their
    weights; without any, 0 with a gradient of 0. Nothing here waits for the device. If
    all targets are known, loss and gradient have the bits of torch's own mean.

    Args:
        logits_BK: any float dtype, shape (B, K).
        targets_BK: in [0, 1], or NaN where unknown; shape (B, K), the same dtype.
        weight_K: weight of each class, above 0; shape (K,).

    Returns:
        A scalar.
    """
    is_known_BK = ~targets_BK.isnan()
    mean = binary_cross_entropy_with_logits(
        logits_BK, targets_BK.masked_fill(~is_known_BK, 0.0), weight_K * is_known_BK
    )
    known_K = is_known_BK.sum(dim=0)
    known = (weight_K * known_K).sum()
    # Computed like `known`, so that their ratio is 1 exactly where all are known.
    every = (weight_K * known_K.new_full(known_K.shape, len(targets_BK))).sum()
    # `mean` is 0 without a known target; any divisor above 0 will do.
    return mean / (known / every + (known == 0))


def with_bags(logits_BK: Tensor, num_bags: int) -> Tensor:
    """Append the logits of the bags of a batch to those of its slices.

    The logit of a bag is the maximum of its slices' logits.

    Args:
        logits_BK: the slices of each bag are consecutive, and as many for each.
        num_bags: D, which divides B; 0 without bags.

    Returns:
        Shape (B + D, K).
    """
    if num_bags == 0:
        return logits_BK
    num_classes = logits_BK.shape[1]
    bag_logits_DK = logits_BK.reshape(num_bags, -1, num_classes).amax(dim=1)
    return torch.cat([logits_BK, bag_logits_DK])
