"""Blends: averages of predictions files of the same slices.

1. Each class has a weight for each file; the weights of a class add up to 1.
2. Weights are equal, those of a blend before, or fitted: on the labels in the files
   those with the lowest log loss, of all that are multiples of 1 / `MAX_STEPS` (fewer
   steps with many files). A class without labels has equal weights.
3. Weights are fitted on patients that no file's runs were trained on. Their loss on
   these patients is better than on others.
4. Fitted weights are written next to the blend, so that they can be applied to slices
   without labels.

Shape letters: F files, N slices, K classes, G points of the grid of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.errors import PredictionError, first_line
from ichfast.evaluation.logits import Floats
from ichfast.evaluation.metrics import KAGGLE_CLIP, weighted_log_loss
from ichfast.evaluation.predictions import (
    ALL_COLUMNS,
    BAG_COLUMNS,
    ENTROPY_COLUMNS,
    KEY_COLUMNS,
    LABEL_COLUMNS,
    SERIES_PROB_COLUMNS,
    STD_COLUMNS,
    labels_NK,
    probs_NK,
    read_predictions,
    write_predictions,
)
from ichfast.labels import CLASSES
from ichfast.predict.averages import binary_entropy
from ichfast.system.checksums import read_document, with_checksum
from ichfast.system.files import output_path

MAX_STEPS = 10
"""Steps of a weight from 0 to 1."""

MAX_POINTS = 1001
"""Upper limit of G, which 5 files reach with all steps."""

SAME_LOSS = 1e-12
"""Losses that differ by less are equal, in nats: files of the same probabilities."""

EQUAL, FIT = "equal", "fit"
"""Kinds of weights, next to a file of a blend before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlendReport:
    """What `blend_files` wrote."""

    predictions: str
    slices: int
    weights: dict[str, list[float]]
    """By class the weight of each file."""

    weights_file: str | None
    """Where they were written; None if they were not fitted."""

    weighted_log_loss: dict[str, float]
    """On the known labels, of each file, of equal weights and of the blend; empty
    without labels. Fitted weights were chosen on these labels."""


def blend_files(paths: Sequence[Path], out: Path, *, weights: str = FIT) -> BlendReport:
    """Average predictions files, and write the result.

    Args:
        paths: two predictions files or more, of the same slices.
        out: the file to write.
        weights: `EQUAL`, `FIT`, or the path of weights that a blend has written.

    Raises:
        PredictionError: files of other slices or labels, a single file, one that is
            missing or damaged, no labels to fit weights on, or a patient among them
            that a run was trained on.
    """
    if len(paths) < 2:
        raise PredictionError("a blend takes two predictions files or more")
    tables = [read_predictions(path) for path in paths]
    tables = [tables[0], *_in_same_order(tables, paths)]
    labels = _common_labels(tables, paths)
    probs_FNK = np.stack([probs_NK(table) for table in tables])
    weights_KF = _choose_weights(weights, tables, paths, probs_FNK, labels)
    write_predictions(out, _blended(tables, probs_FNK, weights_KF))
    by_class = dict(zip(CLASSES, weights_KF.round(6).tolist(), strict=True))
    weights_file = None
    if weights == FIT:
        weights_file = out.with_name(f"{out.name}.weights.json")
        with output_path(weights_file, PredictionError) as temporary:
            temporary.write_text(with_checksum({"weights": by_class}), "utf-8")
    return BlendReport(
        predictions=str(out),
        slices=len(tables[0]),
        weights=by_class,
        weights_file=str(weights_file) if weights_file else None,
        weighted_log_loss=_losses(paths, probs_FNK, weights_KF, labels),
    )


def _in_same_order(
    tables: Sequence[pd.DataFrame], paths: Sequence[Path]
) -> list[pd.DataFrame]:
    """All tables but the first, with their rows in the order of the first."""
    first = pd.Index(tables[0]["slice_id"])
    ordered = []
    for table, path in zip(tables[1:], paths[1:], strict=True):
        ids = pd.Index(table["slice_id"])
        row_N = ids.get_indexer(first)
        num_missing, num_extra = int((row_N < 0).sum()), len(ids.difference(first))
        if num_missing or num_extra:
            raise PredictionError(
                f"{path} lacks {num_missing:,} of the {len(first):,} slices of "
                f"{paths[0]} and has {num_extra:,} others; predict the same slices "
                "with all runs (--store, --only)"
            )
        ordered.append(table.iloc[row_N].reset_index(drop=True))
    return ordered


def _common_labels(tables: Sequence[pd.DataFrame], paths: Sequence[Path]) -> Floats:
    """The labels, shape (N, K), which must be the same in all files."""
    labels = labels_NK(tables[0])
    for table, path in zip(tables[1:], paths[1:], strict=True):
        if not np.array_equal(labels_NK(table), labels, equal_nan=True):
            raise PredictionError(
                f"{path} has other labels than {paths[0]}; predict both from one store"
            )
    return labels


def _choose_weights(
    weights: str,
    tables: Sequence[pd.DataFrame],
    paths: Sequence[Path],
    probs_FNK: Floats,
    labels: Floats,
) -> Floats:
    """Weights, shape (K, F)."""
    if weights == EQUAL:
        return np.full((len(CLASSES), len(tables)), 1.0 / len(tables))
    if weights != FIT:
        return _read_weights(Path(weights), len(tables))
    is_labelled_N = (~np.isnan(labels)).any(axis=1)
    if not is_labelled_N.any():
        raise PredictionError(
            f"{paths[0]} has no labels to fit weights on; take those of a blend that "
            "has with --weights OUT.weights.json, or add --weights equal"
        )
    for table, path in zip(tables, paths, strict=True):
        is_seen_N = table["trained_on"].fillna(value=True).to_numpy(dtype=bool)
        num_seen = int((is_seen_N & is_labelled_N).sum())
        if num_seen:
            raise PredictionError(
                f"{num_seen:,} of {int(is_labelled_N.sum()):,} labelled slices in "
                f"{path} are of patients that its runs were trained on, or may have "
                "been; fit weights on other patients, or add --weights equal"
            )
    return fit_weights(probs_FNK, labels)


def _read_weights(path: Path, num_files: int) -> Floats:
    try:
        by_class = read_document(path)["weights"]
        weights_KF = np.array([by_class[name] for name in CLASSES], dtype=np.float64)
        if weights_KF.ndim != 2 or not (weights_KF >= 0).all():
            raise ValueError("expected weights from 0 to 1 for each class")
        if not np.allclose(weights_KF.sum(axis=1), 1.0, atol=1e-5):
            raise ValueError("the weights of a class do not add up to 1")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PredictionError(
            f"cannot read weights from {path}: {first_line(error)}; name a file that "
            "`ichfast blend` has written, or one of equal and fit"
        ) from error
    if weights_KF.shape[1] != num_files:
        raise PredictionError(
            f"{path} has weights of {weights_KF.shape[1]} files, found {num_files}; "
            "name the files of the same runs, in the same order"
        )
    return weights_KF


def fit_weights(probs_FNK: Floats, labels: Floats) -> Floats:
    """Choose for each class the weights with the lowest log loss.

    Args:
        probs_FNK: probabilities in [0, 1], of each file.
        labels: 0, 1 or NaN, shape (N, K).

    Returns:
        Shape (K, F). Of equally good weights those nearest to equal ones; equal ones
        for a class without labels.
    """
    grid_GF = _grid(len(probs_FNK))
    weights_KF = np.full((labels.shape[1], len(probs_FNK)), 1.0 / len(probs_FNK))
    for k, label_N in enumerate(labels.T):
        is_known_N = ~np.isnan(label_N)
        if is_known_N.any():
            is_positive_M = label_N[is_known_N] == 1
            probs_FM = probs_FNK[:, is_known_N, k]
            # Of the right answer.
            probs_FM = np.where(is_positive_M, probs_FM, 1.0 - probs_FM)
            loss_G = np.array(
                [
                    -np.log(np.maximum(weights_F @ probs_FM, KAGGLE_CLIP)).mean()
                    for weights_F in grid_GF
                ]
            )
            # The first, which is the nearest to equal weights.
            weights_KF[k] = grid_GF[np.argmax(loss_G <= loss_G.min() + SAME_LOSS)]
    return weights_KF


def _grid(num_files: int) -> Floats:
    """Weights that add up to 1, shape (G, F), the nearest to equal ones first."""
    steps = next(
        steps
        for steps in range(MAX_STEPS, 0, -1)
        if steps == 1 or comb(steps + num_files - 1, steps) <= MAX_POINTS
    )
    # Stars and bars: the places of F - 1 bars in a row with `steps` stars.
    row = range(steps + num_files - 1)
    bars = np.array(list(combinations(row, num_files - 1)))
    ends = [np.full((len(bars), 1), end) for end in (-1, len(row))]
    grid_GF = (np.diff(np.hstack([ends[0], bars, ends[1]])) - 1) / steps
    distance_G = ((grid_GF - 1.0 / num_files) ** 2).sum(axis=1)
    return grid_GF[np.argsort(distance_G, kind="stable")]


def _blended(
    tables: Sequence[pd.DataFrame], probs_FNK: Floats, weights_KF: Floats
) -> pd.DataFrame:
    first = tables[0]
    table = first[[*KEY_COLUMNS]].copy()
    folds = np.stack([each["fold"].to_numpy() for each in tables])
    table["fold"] = np.where((folds == folds[0]).all(axis=0), folds[0], -1)
    table["run"] = _joined_names([each["run"] for each in tables])
    for each in tables[1:]:
        table["trained_on"] |= each["trained_on"]  # missing or true is true
    table[list(CLASSES)] = _weighted(probs_FNK, weights_KF)
    rest = [*LABEL_COLUMNS, *first.columns.intersection(BAG_COLUMNS)]
    table[rest] = first[rest]
    if all(SERIES_PROB_COLUMNS[0] in each for each in tables):
        series_FNK = np.stack([each[[*SERIES_PROB_COLUMNS]] for each in tables])
        table[list(SERIES_PROB_COLUMNS)] = _weighted(series_FNK, weights_KF)
    table[list(STD_COLUMNS)] = probs_FNK.std(axis=0)
    table[list(ENTROPY_COLUMNS)] = binary_entropy(probs_NK(table))
    return table[[name for name in ALL_COLUMNS if name in table]]


def _weighted(values_FNK: Floats, weights_KF: Floats) -> Floats:
    blended_NK = np.einsum("fnk,kf->nk", values_FNK, weights_KF)
    return np.clip(blended_NK, 0.0, 1.0)  # the sum of weights may be off by rounding


def _joined_names(runs: Sequence[pd.Series[str]]) -> npt.NDArray[np.object_]:
    """Names of the runs of each slice, each once, joined by +; few different texts."""
    codes_FN, names = zip(*(pd.factorize(run.fillna("")) for run in runs), strict=True)
    patterns, pattern_N = np.unique(np.stack(codes_FN), axis=1, return_inverse=True)
    joined = [
        "+".join(
            dict.fromkeys(
                name
                for f, code in enumerate(pattern)
                for name in names[f][code].split("+")
                if name
            )
        )
        for pattern in patterns.T
    ]
    return np.array(joined, dtype=object)[pattern_N.ravel()]


def _losses(
    paths: Sequence[Path], probs_FNK: Floats, weights_KF: Floats, labels: Floats
) -> dict[str, float]:
    if np.isnan(labels).all():
        return {}
    compared = {
        **{str(path): each for path, each in zip(paths, probs_FNK, strict=True)},
        EQUAL: probs_FNK.mean(axis=0),
        "blend": _weighted(probs_FNK, weights_KF),
    }
    return {name: weighted_log_loss(each, labels) for name, each in compared.items()}
