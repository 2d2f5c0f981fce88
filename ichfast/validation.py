"""Validation: the whole fold judged once, however many ranks share it.

Shape letters: N slices of the fold, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ichfast.evaluation.metrics import accuracy, weighted_log_loss
from ichfast.loading.batch import Loader
from ichfast.training.inference import predict_logits
from ichfast.training.step import Stepper


def validate(stepper: Stepper, loader: Loader) -> dict[str, float]:
    """Judge the model that validates; all ranks get the same result.

    Args:
        stepper: with the model, and the ranks that each predict their part.
        loader: gives this rank's part; together every slice of the fold once.

    Returns:
        valid_loss, without class weights; valid_weighted_log_loss; valid_accuracy.
    """
    model, ranks = stepper.averaged_model, stepper.ranks
    ranks.share_buffers(model)
    parts = ranks.gather(
        predict_logits(
            model, loader, stepper.amp, label="  validate" if ranks.writes else ""
        )
    )
    # By position, so that the sums do not depend on who predicted what.
    order_N = np.argsort(np.concatenate([positions_N for positions_N, _, _ in parts]))
    logits_NK = torch.cat([logits_NK for _, logits_NK, _ in parts])[order_N].double()
    targets_NK = torch.cat([targets_NK for *_, targets_NK in parts])[order_N].double()
    valid_loss = nn.functional.binary_cross_entropy_with_logits(logits_NK, targets_NK)
    probs_NK, labels_NK = logits_NK.sigmoid().numpy(), targets_NK.numpy()
    return {
        "valid_loss": valid_loss.item(),
        "valid_weighted_log_loss": weighted_log_loss(probs_NK, labels_NK),
        "valid_accuracy": accuracy(probs_NK, labels_NK),
    }
