"""How good probabilities are: the competition's loss, and what stands behind it.

1. Everything is computed in float64 and agrees with scikit-learn.
2. Only labelled slices count: those with all six labels. The rest are counted
   and said, and without a single labelled slice there is no result but an error.
3. Beside each figure that a constant could reach stands the figure that the best
   constant reaches on the same slices: each class's prevalence. Most slices are
   negative, so an accuracy of 0.943 says nothing.
4. A study or a patient scores, and is labelled, the maximum over its slices.
5. What is undefined (the AUC of a class with no positive) is None, never NaN.

Shape letters: N slices, K classes, Q calibration bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ichfast.errors import PredictionError
from ichfast.labels import CLASSES
from ichfast.predictions import LABEL_COLUMNS
from ichfast.predictions import labels_NK as labels_of
from ichfast.predictions import probs_NK as probs_of

Floats = npt.NDArray[np.float64]

CLASS_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Of the six classes in the loss: `any` counts 2 of 7.

Source:
    Kaggle, RSNA Intracranial Hemorrhage Detection (2019), "Evaluation".
"""

KAGGLE_CLIP = 1e-15
"""Probabilities are moved this far from 0 and 1 before the logarithm."""

NUM_CALIBRATION_BINS = 15
"""Source: Guo et al. 2017, "On Calibration of Modern Neural Networks"."""


def class_log_loss_K(
    probs_NK: Floats, labels_NK: Floats, *, clip: float = KAGGLE_CLIP
) -> Floats:
    """Mean log loss of each class.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, 6).
        labels_NK: 0 or 1, shape (N, 6), no NaN.
        clip: probabilities are clipped to [clip, 1 - clip]. Greater than zero.

    Returns:
        Shape (6,), float64, in nats.
    """
    loss_K: Floats = _log_loss_NK(probs_NK, labels_NK, clip).mean(axis=0)
    return loss_K


def slice_log_loss_N(
    probs_NK: Floats, labels_NK: Floats, *, clip: float = KAGGLE_CLIP
) -> Floats:
    """Weighted log loss of each slice, shape (N,); arguments as above."""
    weight_K = np.array(CLASS_WEIGHTS) / sum(CLASS_WEIGHTS)
    loss_N: Floats = _log_loss_NK(probs_NK, labels_NK, clip) @ weight_K
    return loss_N


def weighted_log_loss(
    probs_NK: Floats, labels_NK: Floats, *, clip: float = KAGGLE_CLIP
) -> float:
    """The competition's score: the mean over slices of the weighted log loss.

    Args:
        probs_NK: probabilities in [0, 1], shape (N, 6), any float type.
        labels_NK: 0 or 1, shape (N, 6), no NaN.
        clip: probabilities are clipped to [clip, 1 - clip]. Greater than zero.

    Example:
        >>> half = np.full((1, 6), 0.5)
        >>> round(weighted_log_loss(half, np.zeros((1, 6))), 6)
        0.693147
    """
    return float(slice_log_loss_N(probs_NK, labels_NK, clip=clip).mean())


def prevalence_loss(labels_NK: Floats) -> float:
    """Weighted log loss of the best constant: each class's prevalence.

    Args:
        labels_NK: 0 or 1, shape (N, 6), no NaN. The prevalence is theirs.
    """
    return weighted_log_loss(_prevalence_NK(labels_NK), labels_NK)


def accuracy(probs_NK: Floats, labels_NK: Floats) -> float:
    """Share of all N x 6 answers that are right at threshold 0.5.

    Source:
        fastai v1 `accuracy_thresh`, the metric of the reference experiments.
    """
    return float(((probs_NK > 0.5) == (labels_NK > 0.5)).mean())


def sensitivity_at(
    probs_N: Floats, labels_N: Floats, *, specificity: float
) -> float | None:
    """The best sensitivity at a threshold whose specificity is at least that given.

    Returns:
        Within [0, 1]; None where the labels have one value only.
    """
    if not _has_both(labels_N):
        return None
    false_rates, true_rates, _ = roc_curve(labels_N, probs_N, drop_intermediate=False)
    num_negatives = np.count_nonzero(labels_N == 0)
    allowed = (1.0 - specificity) * num_negatives + 1e-6  # counts, so 0.1 is 0.1
    return float(true_rates[false_rates * num_negatives <= allowed].max())


def calibration_bins(
    probs_N: Floats, labels_N: Floats, *, num_bins: int = NUM_CALIBRATION_BINS
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Cut [0, 1] into equal bins and compare probability with frequency in each.

    Returns:
        Per bin, shape (Q,): how many slices; their mean probability; the share of
        them that is positive. The last two are NaN where a bin is empty.
    """
    bin_N = np.minimum((probs_N * num_bins).astype(np.int64), num_bins - 1)
    count_Q = np.bincount(bin_N, minlength=num_bins)
    divisor_Q = np.where(count_Q > 0, count_Q, np.nan)
    mean_prob_Q = np.bincount(bin_N, probs_N, num_bins) / divisor_Q
    frequency_Q = np.bincount(bin_N, labels_N, num_bins) / divisor_Q
    return count_Q, mean_prob_Q, frequency_Q


def calibration_error(
    probs_N: Floats, labels_N: Floats, *, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Expected calibration error: mean |probability - frequency| over the slices."""
    count_Q, mean_prob_Q, frequency_Q = calibration_bins(
        probs_N, labels_N, num_bins=num_bins
    )
    gap_Q = np.nan_to_num(np.abs(mean_prob_Q - frequency_Q))
    return float(np.average(gap_Q, weights=count_Q))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScores:
    """One class. The prevalence is the best constant and the AP of chance."""

    positives: int
    prevalence: float
    log_loss: float
    prevalence_log_loss: float
    """Log loss of predicting `prevalence`."""
    auc: float | None
    """Area under the ROC curve."""
    average_precision: float | None
    sensitivity_at_90: float | None
    """Sensitivity at a specificity of at least 0.90."""
    sensitivity_at_95: float | None
    brier: float
    prevalence_brier: float
    """Brier score of predicting `prevalence`."""
    calibration_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelScores:
    """All classes, counted by slice, by study or by patient."""

    count: int
    """Slices, studies or patients."""
    weighted_log_loss: float
    prevalence_loss: float
    accuracy: float
    prevalence_accuracy: float
    classes: dict[str, ClassScores]
    """By class, in `labels.CLASSES` order."""

    @property
    def ratio(self) -> float | None:
        """Weighted log loss over prevalence loss; None where the labels are constant.

        Below 1 something was learned, 0 is perfect.
        """
        if all(scores.prevalence in (0.0, 1.0) for scores in self.classes.values()):
            return None
        return self.weighted_log_loss / self.prevalence_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a predictions table is worth."""

    unlabelled: int
    """Slices left out because a label is missing."""
    slice: LevelScores
    study: LevelScores
    patient: LevelScores

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, None and dicts; the headline figures first."""
        return {
            "weighted_log_loss": self.slice.weighted_log_loss,
            "prevalence_loss": self.slice.prevalence_loss,
            "ratio": self.slice.ratio,
            "accuracy": self.slice.accuracy,
            "auc_any": self.slice.classes["any"].auc,
            **asdict(self),
        }


def evaluate(table: pd.DataFrame) -> Evaluation:
    """Judge a predictions table by slice, by study and by patient.

    Args:
        table: a predictions table, columns as in `ichfast.predictions`. Slices
            without a study or patient id count as one study or patient.

    Raises:
        PredictionError: no labelled slice, a slice twice, a label other than 0 and
            1, or a probability that is missing or outside [0, 1].
    """
    labelled = labelled_rows(table)
    columns = [*CLASSES, *LABEL_COLUMNS]
    study, patient = (
        labelled.groupby(key, dropna=False, sort=False)[columns].max()
        for key in ("study", "patient")
    )
    return Evaluation(
        unlabelled=len(table) - len(labelled),
        slice=_score_level(probs_of(labelled), labels_of(labelled)),
        study=_score_level(probs_of(study), labels_of(study)),
        patient=_score_level(probs_of(patient), labels_of(patient)),
    )


def labelled_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a predictions table that can be judged, checked.

    Raises:
        PredictionError: as `evaluate`.
    """
    is_labelled_N = ~np.isnan(labels_of(table)).any(axis=1)
    if not is_labelled_N.any():
        raise PredictionError(
            f"none of the {len(table):,} predicted slices has labels, so there is "
            "nothing to judge; predict a store made with `ichfast prepare --labels`"
        )
    labelled: pd.DataFrame = table.iloc[np.flatnonzero(is_labelled_N)]
    doubled = labelled["slice_id"].duplicated()
    if doubled.any():
        raise PredictionError(
            f"{doubled.sum():,} rows of the predictions repeat a slice; "
            "expected one row a slice"
        )
    labels_NK, probs_NK = labels_of(labelled), probs_of(labelled)
    odd_labels = labels_NK[(labels_NK != 0) & (labels_NK != 1)]
    if odd_labels.size:
        raise PredictionError(
            f"{odd_labels.size:,} labels are neither 0 nor 1, such as "
            f"{odd_labels[0]:g}; prepare the store again from a sound label csv"
        )
    odd_probs = probs_NK[~((probs_NK >= 0) & (probs_NK <= 1))]  # also catches NaN
    if odd_probs.size:
        raise PredictionError(
            f"{odd_probs.size:,} predictions lie outside [0, 1], such as "
            f"{odd_probs[0]:g}; expected probabilities, not logits"
        )
    return labelled


def format_evaluation(evaluation: Evaluation) -> str:
    """The evaluation as a text table, with what the prevalence scores beside it."""
    level = evaluation.slice
    counts = (
        f"{level.count:,} slices of {evaluation.study.count:,} studies and "
        f"{evaluation.patient.count:,} patients"
    )
    if evaluation.unlabelled:
        counts += f"; {evaluation.unlabelled:,} more have no labels and are left out"
    lines = [counts, "", _row("", "model", "prevalence", "ratio")]
    for name in ("slice", "study", "patient"):
        scores: LevelScores = getattr(evaluation, name)
        losses = (scores.weighted_log_loss, scores.prevalence_loss, scores.ratio)
        lines.append(_row(f"loss by {name}", *map(format_score, losses)))
    accuracies = (level.accuracy, level.prevalence_accuracy)
    lines.append(_row("accuracy", *map(format_score, accuracies)) + "\n")
    lines.append(_row("", *CLASSES))
    lines += [
        _row(label, *(form(getattr(one, field)) for one in level.classes.values()))
        for label, field, form in _CLASS_ROWS
    ]
    return "\n".join(lines)


def format_score(score: float | None, decimals: int = 4) -> str:
    """A score with fixed decimals; a dash where it is undefined."""
    return "-" if score is None else f"{score:.{decimals}f}"


def _row(label: str, *cells: str) -> str:
    widths = [max(len(name) + 2, 12) for name in CLASSES]
    padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{label:<19}" + "".join(padded)


_CLASS_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("positive slices", "positives", "{:,}".format),
    ("prevalence", "prevalence", format_score),
    ("log loss", "log_loss", format_score),
    ("  of prevalence", "prevalence_log_loss", format_score),
    ("Brier score", "brier", format_score),
    ("  of prevalence", "prevalence_brier", format_score),
    ("AUC (chance 0.5)", "auc", format_score),
    ("average precision", "average_precision", format_score),
    ("sens. at 90% spec.", "sensitivity_at_90", format_score),
    ("sens. at 95% spec.", "sensitivity_at_95", format_score),
    ("calibration error", "calibration_error", format_score),
)


def _score_level(probs_NK: Floats, labels_NK: Floats) -> LevelScores:
    constant_NK = _prevalence_NK(labels_NK)
    return LevelScores(
        count=len(labels_NK),
        weighted_log_loss=weighted_log_loss(probs_NK, labels_NK),
        prevalence_loss=prevalence_loss(labels_NK),
        accuracy=accuracy(probs_NK, labels_NK),
        prevalence_accuracy=accuracy(constant_NK, labels_NK),
        classes={
            name: _score_class(probs_NK[:, k], labels_NK[:, k])
            for k, name in enumerate(CLASSES)
        },
    )


def _score_class(probs_N: Floats, labels_N: Floats) -> ClassScores:
    probs_N1, labels_N1 = probs_N[:, np.newaxis], labels_N[:, np.newaxis]
    prevalence = float(labels_N.mean())
    has_both = _has_both(labels_N)
    return ClassScores(
        positives=int(labels_N.sum()),
        prevalence=prevalence,
        log_loss=float(class_log_loss_K(probs_N1, labels_N1)[0]),
        prevalence_log_loss=float(
            class_log_loss_K(_prevalence_NK(labels_N1), labels_N1)[0]
        ),
        auc=float(roc_auc_score(labels_N, probs_N)) if has_both else None,
        average_precision=(
            float(average_precision_score(labels_N, probs_N)) if has_both else None
        ),
        sensitivity_at_90=sensitivity_at(probs_N, labels_N, specificity=0.90),
        sensitivity_at_95=sensitivity_at(probs_N, labels_N, specificity=0.95),
        brier=float(((probs_N - labels_N) ** 2).mean()),
        prevalence_brier=prevalence * (1.0 - prevalence),
        calibration_error=calibration_error(probs_N, labels_N),
    )


def _log_loss_NK(probs_NK: Floats, labels_NK: Floats, clip: float) -> Floats:
    p_NK: Floats = np.clip(np.asarray(probs_NK, np.float64), clip, 1.0 - clip)
    return -np.where(labels_NK > 0.5, np.log(p_NK), np.log1p(-p_NK))


def _prevalence_NK(labels_NK: Floats) -> Floats:
    return np.broadcast_to(labels_NK.mean(axis=0, dtype=np.float64), labels_NK.shape)


def _has_both(labels_N: Floats) -> bool:
    return bool(labels_N.min() != labels_N.max())
