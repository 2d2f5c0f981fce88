"""Inference: logits of a model over a loader, test-time augmentation, validation.

Test-time augmentation predicts each slice several times, plain and augmented, and
averages the probabilities of these passes by weight.

Shape letters: N slices, B slices of the batch, C channels, H rows, W columns,
K classes.
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
from ichfast.loading.bags import Bags
from ichfast.loading.batch import Loader
from ichfast.models.precision import Amp
from ichfast.system.terminal import progress
from ichfast.training.loss import known_loss
from ichfast.training.step import Stepper

TTA_SCALE = 1.35
"""Zoom of the reference's augmented passes."""

TTA_BETA = 0.4
"""Weight of the reference's plain pass; the augmented passes share the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One prediction of every slice."""

    weight: float
    """Share in the mean; the weights of all passes add up to 1."""

    augment: AugmentConfig
    """Augmentation of the pass."""


def tta_passes(name: str, augment: AugmentConfig) -> list[Pass]:
    """List the passes of a test-time augmentation.

    Args:
        name: ``none``; ``flips``: plain and mirrored; ``reference``: one plain pass
            and eight zoomed by `TTA_SCALE`, into four corners, mirrored and not.
        augment: the augmentation of the training. The zoomed passes replace its
            zoom and flip, and draw the rest.

    Source:
        fastai v1 `Learner.TTA`: beta 0.4, scale 1.35.
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
        model: images to logits (B, K); left in evaluation mode.
        loader: gives batches on the model's device.
        amp: number format.
        epoch: epoch of the loader.
        label: label of the progress display; empty for no display.

    Returns:
        Store positions (N,), int64; logits (N, K) and targets (N, K), float32, on
        the CPU. All in the order of the loader.
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
            bar.update(batch.num_slices)
    return (
        np.concatenate(positions),
        torch.cat(logits).cpu(),
        torch.cat(targets).cpu(),
    )


def mix_passes(
    passes: Sequence[Pass], probs: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Average the probabilities of the passes by weight.

    Args:
        passes: as `tta_passes` lists them.
        probs: one array per pass, shape (N, K), all in the same slice order.

    Returns:
        Shape (N, K), float64.
    """
    pairs = zip(passes, probs, strict=True)
    return np.sum([each.weight * probs_NK for each, probs_NK in pairs], axis=0)


def validate(stepper: Stepper, loader: Loader, bags: Bags) -> dict[str, float]:
    """Validate the averaged model on the whole fold; the same result on all ranks.

    Args:
        stepper: holds the model and the ranks, which each predict their part.
        loader: gives this rank's part; together the ranks give every slice of the
            fold once.
        bags: those of the fold. Their logits are the maximum over all their slices.

    Returns:
        The figures of `valid_figures`, over the slices and bags of the fold.
    """
    model, ranks = stepper.averaged_model, stepper.ranks
    ranks.share_buffers(model)
    parts = ranks.gather(
        predict_logits(
            model, loader, stepper.amp, label="  validate" if ranks.writes else ""
        )
    )
    # Sorted by position, so that sums do not depend on which rank predicted what.
    positions_N = np.concatenate([positions_N for positions_N, _, _ in parts])
    order_N = np.argsort(positions_N)
    logits_NK = torch.cat([logits_NK for _, logits_NK, _ in parts])[order_N].double()
    targets_NK = torch.cat([targets_NK for *_, targets_NK in parts])[order_N].double()
    if len(bags):
        highest_DK = bags.highest(positions_N[order_N], logits_NK.numpy())
        bag_labels_DK = torch.from_numpy(bags.labels_DK).double()
        logits_NK = torch.cat([logits_NK, torch.from_numpy(highest_DK)])
        targets_NK = torch.cat([targets_NK, bag_labels_DK])
    return valid_figures(logits_NK.numpy(), targets_NK.numpy())


def valid_figures(
    logits_NK: npt.NDArray[np.float64], labels_NK: npt.NDArray[np.float64]
) -> dict[str, float]:
    """The figures of a validation, over the known labels.

    Args:
        logits_NK: one row per slice or bag, shape (N, 6).
        labels_NK: 0, 1 or NaN, shape (N, 6).

    Returns:
        valid_loss, without class weights; valid_weighted_log_loss; valid_accuracy.
    """
    logits, labels = torch.from_numpy(logits_NK), torch.from_numpy(labels_NK)
    no_weight_K = torch.ones(labels.shape[1], dtype=torch.float64)
    probs_NK = logits.sigmoid().numpy()
    return {
        "valid_loss": known_loss(logits, labels, no_weight_K).item(),
        "valid_weighted_log_loss": weighted_log_loss(probs_NK, labels_NK),
        "valid_accuracy": accuracy(probs_NK, labels_NK),
    }
