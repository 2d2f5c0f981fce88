"""A model and a loader to probabilities, and test-time augmentation.

Test-time augmentation looks at each slice several times and mixes the sigmoid
outputs: plain passes and augmented ones, each with its weight.

Shape letters: N slices, B slices of the batch, C channels, H rows, W columns,
K classes.

Validation: the whole fold judged once, however many ranks share it.

Shape letters: N slices of the fold, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ichfast.augment.config import AugmentConfig
from ichfast.evaluation.metrics import accuracy, weighted_log_loss
from ichfast.loading.batch import Loader
from ichfast.models.precision import Amp
from ichfast.system.terminal import progress
from ichfast.training.step import Stepper

TTA_SCALE = 1.35
"""Zoom of the reference's augmented passes."""

TTA_BETA = 0.4
"""Weight of the reference's plain pass; the augmented ones share the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One look at every slice."""

    weight: float
    """Share in the mean; the passes of a list add up to 1."""

    augment: AugmentConfig
    """What the pass sees."""


def tta_passes(name: str, augment: AugmentConfig) -> list[Pass]:
    """List the passes of a test-time augmentation.

    Args:
        name: ``none``; ``flips``: plain and mirrored; ``reference``: one plain pass
            and eight at scale 1.35, in four corners and mirrored, in which
            whatever else the training drew goes on being drawn.
        augment: what the run trained with.

    Source:
        fastai v1 `Learner.TTA`: beta 0.4, scale 1.35; the zoom and the flip of
        training give way to those of the pass.
    """
    plain = AugmentConfig()
    if name == "none":
        return [Pass(weight=1.0, augment=plain)]
    if name == "flips":
        mirrored = replace(plain, flip_probability=1.0)
        return [Pass(weight=0.5, augment=each) for each in (plain, mirrored)]
    if name != "reference":
        raise ValueError(f"no test-time augmentation {name!r}")
    return [
        Pass(weight=TTA_BETA, augment=plain),
        *(
            Pass(
                weight=(1.0 - TTA_BETA) / 8,
                augment=replace(
                    augment,
                    min_zoom=TTA_SCALE,
                    max_zoom=TTA_SCALE,
                    zoom_focus=corner,
                    flip_probability=flipped,
                ),
            )
            for flipped in (0.0, 1.0)
            for corner in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
        ),
    ]


@torch.inference_mode()
def predict_logits(
    model: nn.Module, loader: Loader, amp: Amp, *, epoch: int = 0, label: str = ""
) -> tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]:
    """Run a model over one epoch of a loader.

    Args:
        model: gives logits (B, K); put into evaluation mode here, and left so.
        loader: gives batches on the model's device.
        amp: number format.
        epoch: which epoch of the loader.
        label: what the progress display says; empty shows none.

    Returns:
        Store positions (N,), int64; logits (N, K) and targets (N, K), float32, on
        the CPU. All in the order the loader gave.
    """
    model.eval()
    positions, logits, targets = [], [], []
    with progress(label, loader.num_slices, "slice") as bar:
        for batch in loader.epoch(epoch):
            with amp.autocast():
                logits_BK = model(batch.images_BCHW.to(amp.dtype))
            positions.append(batch.indices_B.numpy())
            logits.append(logits_BK.float())
            targets.append(batch.targets_BK)
            bar.update(len(batch))
    return (
        np.concatenate(positions),
        torch.cat(logits).cpu(),
        torch.cat(targets).cpu(),
    )


def mix_passes(
    passes: Sequence[Pass], probs: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Average the passes' probabilities by weight.

    Args:
        passes: as `tta_passes` listed them.
        probs: of each pass, shape (N, K), all in the same slice order.

    Returns:
        Shape (N, K), float64.
    """
    return np.sum(
        [look.weight * probs_NK for look, probs_NK in zip(passes, probs, strict=True)],
        axis=0,
    )


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
