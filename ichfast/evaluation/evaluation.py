"""Evaluation of a predictions table by slice, by study and by patient.

1. Only slices with all six labels are evaluated. The others are counted and reported;
   a table without a labelled slice is an error.
2. Next to each figure stands what the best constant scores on the same slices: the
   prevalence of each class. Most slices are negative, so that an accuracy of 0.943
   alone says nothing.
3. The probability and the label of a study or a patient are the maximum over its
   slices. Slices without a patient id count as one patient a study.
4. An undefined figure (the AUC of a class without positives) is None, never NaN.
5. Intervals come from resampled patients (`ichfast.evaluation.bootstrap`) at every
   level.

To add a figure: compute it in `metrics` or `ranking`, give it two fields and a line in
`_score_class` here, and show it with a line in `scoretable`.

Shape letters: N slices, studies or patients, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import PredictionError
from ichfast.evaluation.bootstrap import (
    SEED,
    Interval,
    Resampling,
    draw_patients,
    mean_interval,
)
from ichfast.evaluation.metrics import (
    Floats,
    accuracy,
    calibration_error,
    class_log_loss_K,
    has_both,
    prevalence_loss,
    prevalence_NK,
    slice_log_loss_N,
    weighted_log_loss,
)
from ichfast.evaluation.predictions import LABEL_COLUMNS
from ichfast.evaluation.predictions import labels_NK as labels_of
from ichfast.evaluation.predictions import probs_NK as probs_of
from ichfast.evaluation.ranking import RANKING_FIGURES, Ranking, spread_of
from ichfast.labels import CLASSES
from ichfast.store.tables import patients_N


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScores:
    """The figures of one class.

    A field ``prevalence_...`` is the score of always predicting `prevalence`.
    """

    positives: int
    prevalence: float
    log_loss: float
    prevalence_log_loss: float
    auc: float | None
    """Area under the ROC curve."""
    prevalence_auc: float | None
    average_precision: float | None
    prevalence_average_precision: float | None
    sensitivity_at_90: float | None
    """Sensitivity at a specificity of at least 0.90."""
    prevalence_sensitivity_at_90: float | None
    """0, since a constant calls every slice positive or none."""
    sensitivity_at_95: float | None
    prevalence_sensitivity_at_95: float | None
    brier: float
    prevalence_brier: float
    calibration_error: float
    prevalence_calibration_error: float
    """0, since the prevalence is calibrated, though useless."""
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """95 % intervals by name of `evaluation.ranking.RANKING_FIGURES`; empty without
    bootstrap."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelScores:
    """The figures of all classes, by slice, by study or by patient."""

    count: int
    """Number of slices, studies or patients."""
    weighted_log_loss: float
    weighted_log_loss_interval: Interval | None
    """95 % interval; None without bootstrap or with fewer than two patients."""
    prevalence_loss: float
    accuracy: float
    prevalence_accuracy: float
    classes: dict[str, ClassScores]
    """By class, in `labels.CLASSES` order."""

    @property
    def ratio(self) -> float | None:
        """Weighted log loss over prevalence loss; None where the labels are constant.

        Below 1 the model has learned something; 0 is perfect.
        """
        if all(scores.prevalence in (0.0, 1.0) for scores in self.classes.values()):
            return None
        return self.weighted_log_loss / self.prevalence_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The evaluation of a predictions table."""

    unlabelled: int
    """Slices left out because a label is missing."""
    bootstrap: dict[str, int]
    """``replicates``: how many there are for each interval, and their ``seed``."""
    slice: LevelScores
    study: LevelScores
    patient: LevelScores

    def to_json(self) -> dict[str, Any]:
        """Return numbers, strings, None and dicts, the headline figures first."""
        return {
            "weighted_log_loss": self.slice.weighted_log_loss,
            "prevalence_loss": self.slice.prevalence_loss,
            "ratio": self.slice.ratio,
            "accuracy": self.slice.accuracy,
            "auc_any": self.slice.classes["any"].auc,
            **asdict(self),
        }


def evaluate(table: pd.DataFrame, *, replicates: int = 0) -> Evaluation:
    """Evaluate a predictions table by slice, by study and by patient.

    Args:
        table: a predictions table, columns as in `ichfast.evaluation.predictions`.
        replicates: bootstrap replicates for the intervals; 0 for no intervals.

    Raises:
        PredictionError: no slice with all six labels, a slice twice, a label other than
            0 and 1, or a probability that is missing or outside [0, 1].

    Example:
        >>> from pathlib import Path
        >>> import ichfast
        >>> from ichfast.evaluation import read_predictions
        >>> table = read_predictions(Path("predictions.parquet"))
        >>> evaluation = ichfast.evaluate(table, replicates=0)
        >>> evaluation.slice.count == len(table)
        True
    """
    labelled = labelled_rows(table)
    labelled = labelled.assign(patient=patients_N(labelled))
    columns = [*CLASSES, *LABEL_COLUMNS]
    by_study, by_patient = (
        labelled.groupby(keys, dropna=False, sort=False)[columns].max().reset_index()
        for keys in (["patient", "study"], ["patient"])
    )
    counts_RP = draw_patients(len(by_patient), replicates=replicates)
    return Evaluation(
        unlabelled=len(table) - len(labelled),
        bootstrap={"replicates": replicates, "seed": SEED},
        slice=score_level(labelled, counts_RP),
        study=score_level(by_study, counts_RP),
        patient=score_level(by_patient, counts_RP),
    )


def labelled_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the labelled rows of a predictions table, checked.

    Raises:
        PredictionError: no slice with all six labels, a slice twice, a label other than
            0 and 1, or a probability that is missing or outside [0, 1].
    """
    is_labelled_N = ~np.isnan(labels_of(table)).any(axis=1)
    if not is_labelled_N.any():
        raise PredictionError(
            f"none of the {len(table):,} predicted slices has all six labels, so there "
            "is nothing to evaluate; predict a store made with `ichfast prepare "
            "--labels`"
        )
    labelled: pd.DataFrame = table.iloc[np.flatnonzero(is_labelled_N)]
    doubled = labelled["slice_id"].duplicated()
    if doubled.any():
        raise PredictionError(
            f"{doubled.sum():,} rows of the predictions repeat a slice; "
            "expected one row a slice"
        )
    labels_NK, probs_NK = labels_of(labelled), probs_of(labelled)
    wrong_labels = labels_NK[(labels_NK != 0) & (labels_NK != 1)]
    if wrong_labels.size:
        raise PredictionError(
            f"{wrong_labels.size:,} labels are neither 0 nor 1, such as "
            f"{wrong_labels[0]:g}; prepare the store again from a correct label csv"
        )
    wrong_probs = probs_NK[~((probs_NK >= 0) & (probs_NK <= 1))]  # also catches NaN
    if wrong_probs.size:
        raise PredictionError(
            f"{wrong_probs.size:,} predictions lie outside [0, 1], such as "
            f"{wrong_probs[0]:g}; expected probabilities, not logits"
        )
    return labelled


def score_level(rows: pd.DataFrame, counts_RP: npt.NDArray[np.int64]) -> LevelScores:
    """Compute the figures of slices, studies or patients.

    Args:
        rows: probabilities, labels without NaN, and the patient of each.
        counts_RP: replicates of `draw_patients` for the patients of the rows.
    """
    probs_NK, labels_NK = probs_of(rows), labels_of(rows)
    resampling = None
    if len(counts_RP):
        patient_N: npt.NDArray[np.intp] = pd.factorize(rows["patient"])[0]
        resampling = Resampling(counts_RP, patient_N)
    loss_N = slice_log_loss_N(probs_NK, labels_NK)
    return LevelScores(
        count=len(labels_NK),
        weighted_log_loss=weighted_log_loss(probs_NK, labels_NK),
        weighted_log_loss_interval=(
            mean_interval(loss_N, resampling) if resampling else None
        ),
        prevalence_loss=prevalence_loss(labels_NK),
        accuracy=accuracy(probs_NK, labels_NK),
        prevalence_accuracy=accuracy(prevalence_NK(labels_NK), labels_NK),
        classes={
            name: _score_class(probs_NK[:, k], labels_NK[:, k], resampling)
            for k, name in enumerate(CLASSES)
        },
    )


def _score_class(
    probs_N: Floats, labels_N: Floats, resampling: Resampling | None
) -> ClassScores:
    probs_N1, labels_N1 = probs_N[:, np.newaxis], labels_N[:, np.newaxis]
    prevalence = float(labels_N.mean())
    can_rank = has_both(labels_N)
    figures: dict[str, float | None] = dict.fromkeys(RANKING_FIGURES)
    intervals: dict[str, Interval | None] = {}
    if resampling:
        intervals = dict.fromkeys(RANKING_FIGURES)
    if can_rank:
        ranking = Ranking(probs_N, labels_N)
        figures = {name: f(ranking.counts()) for name, f in RANKING_FIGURES.items()}
        if resampling:
            intervals = spread_of(ranking, resampling).intervals
    return ClassScores(
        positives=int(labels_N.sum()),
        prevalence=prevalence,
        log_loss=float(class_log_loss_K(probs_N1, labels_N1)[0]),
        prevalence_log_loss=float(
            class_log_loss_K(prevalence_NK(labels_N1), labels_N1)[0]
        ),
        prevalence_auc=0.5 if can_rank else None,
        prevalence_average_precision=prevalence if can_rank else None,
        prevalence_sensitivity_at_90=0.0 if can_rank else None,
        prevalence_sensitivity_at_95=0.0 if can_rank else None,
        brier=float(((probs_N - labels_N) ** 2).mean()),
        prevalence_brier=prevalence * (1.0 - prevalence),
        calibration_error=calibration_error(probs_N, labels_N),
        prevalence_calibration_error=0.0,
        intervals=intervals,
        **figures,
    )
