"""Slice model, smoothing, series head and blend on the patients that validate.

Shape letters: N slices of the store, M labels of slices and series, P patients,
K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.evaluation.logits import logit, sigmoid
from ichfast.evaluation.metrics import prevalence_loss, weighted_log_loss
from ichfast.series.batches import SeriesArrays
from ichfast.series.blend import blend, choose_blend, crossfit_blend
from ichfast.series.features import Features
from ichfast.series.fit import predict_series
from ichfast.series.head import SeriesHead
from ichfast.series.smoothing import smooth_over_z
from ichfast.series.split import SeriesSplit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelComparison:
    """Logits of the slices that validate; NaN in all other rows."""

    valid: SeriesArrays
    slice_model_NK: Floats
    smoothed_NK: Floats
    """Logits of the slice model, smoothed over z."""

    head_NK: Floats
    share_K: Floats
    """Share of the head of each class that is best on these patients."""

    share_NK: Floats
    """The same, for each slice the best on all other patients than its own."""

    @property
    def blended_NK(self) -> Floats:
        """Slice model and head, with the best shares."""
        return blend(self.slice_model_NK, self.head_NK, self.share_K)

    @property
    def crossfitted_NK(self) -> Floats:
        """Slice model and head, with shares that were chosen on other patients."""
        return blend(self.slice_model_NK, self.head_NK, self.share_NK)

    def losses(self) -> dict[str, float]:
        """Weighted log losses over the known labels, by name."""
        labels_MK = self.valid.judged_labels
        models = {
            "slice_model": self.slice_model_NK,
            "smoothed": self.smoothed_NK,
            "head": self.head_NK,
            "blended": self.blended_NK,
            "blended_crossfit": self.crossfitted_NK,
        }
        return {"prevalence": prevalence_loss(labels_MK)} | {
            name: weighted_log_loss(sigmoid(self.valid.judged(logits_NK)), labels_MK)
            for name, logits_NK in models.items()
        }


def compare_models(
    head: SeriesHead, features: Features, split: SeriesSplit
) -> ModelComparison:
    """Predict the series that validate with each model, and choose the blend.

    Args:
        head: left in evaluation mode.
        features: those that the head was trained on.
        split: of their store.
    """
    valid, labels_MK = split.valid, split.valid.judged_labels
    head_NK, _ = predict_series(head, valid)
    slice_model_NK = np.full(head_NK.shape, np.nan)
    slice_model_NK[valid.rows_M] = features.logits_NK[valid.rows_M]
    first_S = valid.rows_M[valid.first_S]
    patient_M = split.patient_N[np.concatenate([valid.rows_M, first_S])]
    _, patient_M = np.unique(patient_M, return_inverse=True)
    share_PK = crossfit_blend(
        slice_model_NK, head_NK, labels_MK, patient_M, valid.judged
    )
    share_NK = np.full(head_NK.shape, np.nan)
    share_NK[valid.rows_M] = share_PK[patient_M[: len(valid.rows_M)]]
    return ModelComparison(
        valid=valid,
        slice_model_NK=slice_model_NK,
        smoothed_NK=_smoothed(slice_model_NK, valid),
        head_NK=head_NK,
        share_K=choose_blend(slice_model_NK, head_NK, labels_MK, valid.judged),
        share_NK=share_NK,
    )


def _smoothed(logits_NK: Floats, valid: SeriesArrays) -> Floats:
    rows_M = valid.rows_M
    length_S = np.diff(valid.first_S, append=len(rows_M))
    series_M = np.repeat(np.arange(len(valid)), length_S)
    smoothed_NK = np.full(logits_NK.shape, np.nan)
    probs_MK = smooth_over_z(sigmoid(logits_NK[rows_M]), series_M, rows_M)
    smoothed_NK[rows_M] = logit(probs_MK)
    return smoothed_NK
