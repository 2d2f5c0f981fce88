"""Evaluation of a predictions table by slice, series, study and patient.

1. Each class is evaluated on the slices where its label is known. Slices without any
   label are counted and reported; a table without labels is an error.
2. Next to each figure stands what the best constant scores on the same slices: the
   prevalence of each class. Most slices are negative, so that an accuracy of 0.943
   alone says nothing.
3. `ichfast.evaluation.levels` says what the probability and the label of a series, a
   study or a patient are.
4. An undefined figure (the AUC of a class without positives) is None, never NaN. A
   class without any label has None instead of figures.
5. Intervals come from resampled patients (`ichfast.evaluation.bootstrap`) at every
   level.

To add a figure: compute it in `metrics` or `ranking`, give it two fields and a line in
`_score_class` here, and show it with a line in `scoretable`.

Shape letters: N slices, series, studies or patients, K classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from operator import itemgetter
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
from ichfast.evaluation.levels import LEVELS, PLURALS, Parts, split_levels
from ichfast.evaluation.metrics import (
    Floats,
    accuracy,
    calibration_error,
    class_log_loss_K,
    has_both,
    known_weight_N,
    prevalence_loss,
    prevalence_NK,
    slice_log_loss_N,
    weighted_log_loss,
)
from ichfast.evaluation.predictions import labels_NK as labels_of
from ichfast.evaluation.predictions import probs_NK as probs_of
from ichfast.evaluation.predictions import series_probs_NK
from ichfast.evaluation.ranking import RANKING_FIGURES, Ranking, spread_of
from ichfast.labels import CLASSES

DEFAULT_LEVELS = ("slice", "study", "patient")
"""The levels that are evaluated if none is asked for. Where a head gave probabilities
of series, these are evaluated too."""


MIN_NEGATIVES = 30
"""Negative series, studies or patients below which figures come with a warning: one
of 30 is 3 % of the specificity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScores:
    """The figures of one class.

    A field ``prevalence_...`` is the score of always predicting `prevalence`.
    """

    count: int
    """Slices, series, studies or patients whose label is known."""
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
    """The figures of all classes, by slice, series, study or patient.

    Losses and accuracies are over all known labels together.
    """

    count: int
    """Number of slices, series, studies or patients with a label of any class."""
    weighted_log_loss: float
    weighted_log_loss_interval: Interval | None
    """95 % interval; None without bootstrap or with fewer than two patients."""
    prevalence_loss: float
    accuracy: float
    prevalence_accuracy: float
    classes: dict[str, ClassScores | None]
    """By class, in `labels.CLASSES` order; None for a class without any label."""

    @property
    def unlabelled_classes(self) -> list[str]:
        """The classes without any label."""
        return [name for name, scores in self.classes.items() if scores is None]

    @property
    def fewest_negatives(self) -> tuple[str, int]:
        """The class with the fewest negatives, and how many those are."""
        negatives = {
            name: scores.count - scores.positives
            for name, scores in self.classes.items()
            if scores
        }
        return min(negatives.items(), key=itemgetter(1))

    @property
    def ratio(self) -> float | None:
        """Weighted log loss over prevalence loss; None where the labels are constant.

        Below 1 the model has learned something; 0 is perfect.
        """
        known = [scores for scores in self.classes.values() if scores]
        if all(scores.prevalence in (0.0, 1.0) for scores in known):
            return None
        return self.weighted_log_loss / self.prevalence_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The evaluation of a predictions table."""

    unlabelled: int
    """Slices, series or studies of the first level that have no label at all, and are
    left out there."""
    has_head: bool
    """Whether the probability of a series is that of a head; else it is the highest of
    its slices."""
    bootstrap: dict[str, int]
    """``replicates``: how many there are for each interval, and their ``seed``."""
    levels: dict[str, LevelScores]
    """By a name of `LEVELS`, in that order; at least one. Levels without any label are
    left out."""

    def warning_of(self, level: str) -> str:
        """Why the figures of a level say little; empty where they do not.

        Slices have no warning: where they are few, so are their series.
        """
        name, count = self.levels[level].fewest_negatives
        if level == "slice" or count >= MIN_NEGATIVES:
            return ""
        are = "is" if count == 1 else "are"
        return (
            f"{count} of {self.levels[level].count:,} {PLURALS[level]} {are} "
            f"negative for {name}, fewer than {MIN_NEGATIVES}: figures by {level} may "
            "be far off"
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings of all levels."""
        return [text for text in map(self.warning_of, self.levels) if text]

    @property
    def first_name(self) -> str:
        """Name of the finest level, which the headline figures are of."""
        return next(iter(self.levels))

    @property
    def first(self) -> LevelScores:
        """The figures of the finest level."""
        return self.levels[self.first_name]

    def to_json(self) -> dict[str, Any]:
        """Return numbers, strings, None and dicts, the headline figures first."""
        any_scores = self.first.classes["any"]
        return {
            "weighted_log_loss": self.first.weighted_log_loss,
            "prevalence_loss": self.first.prevalence_loss,
            "ratio": self.first.ratio,
            "accuracy": self.first.accuracy,
            "auc_any": any_scores.auc if any_scores else None,
            "level": self.first_name,
            "unlabelled": self.unlabelled,
            "warnings": self.warnings,
            "has_head": self.has_head,
            "bootstrap": self.bootstrap,
            **{name: asdict(scores) for name, scores in self.levels.items()},
        }


def evaluate(
    table: pd.DataFrame, *, replicates: int = 0, level: str | None = None
) -> Evaluation:
    """Evaluate a predictions table by slice, series, study or patient.

    Args:
        table: a predictions table, columns as in `ichfast.evaluation.predictions`.
        replicates: bootstrap replicates for the intervals; 0 for no intervals.
        level: the only one of `LEVELS` to evaluate; None for `DEFAULT_LEVELS`, or all
            where the table has probabilities of series.

    Raises:
        PredictionError: no label at that level, a slice twice, a label other than 0 and
            1, a probability that is missing or outside [0, 1], or rows that give their
            series or study different labels.

    Example:
        >>> from pathlib import Path
        >>> import ichfast
        >>> from ichfast.evaluation import read_predictions
        >>> table = read_predictions(Path("predictions.parquet"))
        >>> evaluation = ichfast.evaluate(table, replicates=0)
        >>> evaluation.levels["slice"].count == len(table)
        True
    """
    check_rows(table)
    levels = split_levels(table)
    parts = levels.parts
    has_head = series_probs_NK(table) is not None
    usual = LEVELS if has_head else DEFAULT_LEVELS
    wanted = usual if level is None else (level,)
    labelled = [name for name in wanted if parts[name].is_labelled_N.any()]
    if not labelled:
        raise PredictionError(
            f"none of the {len(table):,} predicted slices has a label"
            f"{f' by {level}' if level else ''}, so there is nothing to evaluate; "
            "predict a store made with `ichfast prepare --labels`"
        )
    counts_RP = draw_patients(levels.num_patients, replicates=replicates)
    return Evaluation(
        has_head=has_head,
        unlabelled=int((~parts[labelled[0]].is_labelled_N).sum()),
        bootstrap={"replicates": replicates, "seed": SEED},
        levels={
            name: _score_level(parts[name], levels.patient_M, counts_RP)
            for name in labelled
        },
    )


def check_rows(table: pd.DataFrame) -> None:
    """Check the slices, labels and probabilities of a predictions table.

    Raises:
        PredictionError: a slice twice, a label other than 0 and 1, or a probability
            that is missing or outside [0, 1].
    """
    doubled = table["slice_id"].duplicated()
    if doubled.any():
        raise PredictionError(
            f"{doubled.sum():,} rows of the predictions repeat a slice; "
            "expected one row a slice"
        )
    labels_NK = labels_of(table)
    is_wrong_NK = (labels_NK != 0) & (labels_NK != 1) & ~np.isnan(labels_NK)
    wrong_labels = labels_NK[is_wrong_NK]
    if wrong_labels.size:
        raise PredictionError(
            f"{wrong_labels.size:,} labels are neither 0 nor 1, such as "
            f"{wrong_labels[0]:g}; prepare the store again from a correct label csv"
        )
    for probs_NK in (probs_of(table), series_probs_NK(table)):
        if probs_NK is None:
            continue
        wrong_probs = probs_NK[~((probs_NK >= 0) & (probs_NK <= 1))]  # also catches NaN
        if wrong_probs.size:
            raise PredictionError(
                f"{wrong_probs.size:,} predictions lie outside [0, 1], such as "
                f"{wrong_probs[0]:g}; expected probabilities, not logits"
            )


def _score_level(
    parts: Parts,
    patient_M: npt.NDArray[np.intp],
    counts_RP: npt.NDArray[np.int64],
) -> LevelScores:
    """Compute the figures of a level.

    Args:
        parts: of the level.
        patient_M: number of the patient of each row of the table.
        counts_RP: replicates of the patients.
    """
    chosen_N = parts.is_labelled_N
    probs_NK, labels_NK = parts.probs_NK[chosen_N], parts.labels_NK[chosen_N]
    resampling = None
    if len(counts_RP):
        resampling = Resampling(counts_RP, patient_M[parts.row_N[chosen_N]])
    loss_N = slice_log_loss_N(probs_NK, labels_NK)
    return LevelScores(
        count=len(labels_NK),
        weighted_log_loss=weighted_log_loss(probs_NK, labels_NK),
        weighted_log_loss_interval=(
            mean_interval(loss_N, known_weight_N(labels_NK), resampling)
            if resampling
            else None
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
) -> ClassScores | None:
    is_known_N = ~np.isnan(labels_N)
    if not is_known_N.any():
        return None
    probs_N, labels_N = probs_N[is_known_N], labels_N[is_known_N]
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
            intervals = spread_of(ranking, resampling.of(is_known_N)).intervals
    return ClassScores(
        count=len(labels_N),
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
