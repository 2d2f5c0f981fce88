"""Trained runs and a store to a predictions table.

1. On the store it trained on, a run predicts the slices of its validation fold:
   those it has not seen. On any other it predicts all slices.
2. A slice gets the average over the runs that predicted it. So the runs of all folds
   predict their store out of fold, and any other store as an ensemble.
3. The passes of a run's test-time augmentation are averaged before the runs are,
   and smoothing over z comes last.
4. The table says of each slice which runs predicted it, and whether one of them
   trained on its patient.

Shape letters: N slices of the store, M slices that a run predicts, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ichfast.errors import PredictionError
from ichfast.evaluation.predictions import COLUMNS, LABEL_COLUMNS
from ichfast.labels import CLASSES
from ichfast.loading.loader import make_loader
from ichfast.loading.splits import split_slices
from ichfast.models.precision import choose_amp
from ichfast.predict.smoothing import Floats, logit, sigmoid, smooth_over_z
from ichfast.predict.training_patients import trained_on_N
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import fitting_batch_size
from ichfast.runs.device import largest_batch_on_gpu
from ichfast.runs.trained import TrainedRun, open_ensemble
from ichfast.store.store import Store
from ichfast.training.inference import mix_passes, predict_logits, tta_passes


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """How slices are predicted."""

    tta: str = "none"
    """Test-time augmentation, a name of `training.inference.tta_passes`."""

    average: str = "probs"
    """What of several runs is averaged: ``probs`` or ``logits``."""

    smooth: bool = False
    """Average each slice with its neighbours in its series."""

    batch_size: int | None = None
    """Slices at a time; None: as many as fit a GPU, and the recipe's on a CPU."""

    cache: str = "none"
    """Where the slices of a run are kept between its passes: a name of
    `loading.config.CACHES`."""

    limit: int | None = None
    """Each run predicts so many slices only, spread evenly."""

    def __post_init__(self) -> None:
        if self.average not in ("probs", "logits"):
            raise PredictionError(
                f"runs are averaged as probs or as logits, got {self.average!r}"
            )


DEFAULT = PredictConfig()


def predict_runs(
    paths: Sequence[Path],
    *,
    device: torch.device,
    store_path: Path | None = None,
    config: PredictConfig = DEFAULT,
) -> pd.DataFrame:
    """Predict with the best epoch of one or more runs.

    Args:
        paths: the runs' folders.
        device: where to compute.
        store_path: another store than the one the runs trained on.
        config: how.

    Returns:
        A table with the columns of `ichfast.evaluation.predictions`, in store order.

    Raises:
        IchfastError: no run, no good checkpoint, no store, or runs that do not fit
            together.
    """
    runs = open_ensemble(paths)
    with Store(store_path or _common_store(runs)) as store:
        return predict_store(runs, store, device=device, config=config)


def _common_store(runs: Sequence[TrainedRun]) -> Path:
    stores = {run.record.store: run for run in runs}
    if len(stores) > 1:
        shown = ", ".join(f"{run.path} on {store}" for store, run in stores.items())
        raise PredictionError(
            f"the runs trained on different stores ({shown}); "
            "name the one to predict with --store"
        )
    return Path(runs[0].record.store)


def predict_store(
    runs: Sequence[TrainedRun],
    store: Store,
    *,
    device: torch.device,
    config: PredictConfig,
) -> pd.DataFrame:
    """Predict a store with one or more runs; see `predict_runs`."""
    answers = [_answer(run, store, device, config) for run in runs]
    positions_N, probs_NK = average(
        [(a.positions_M, a.probs_MK) for a in answers], how=config.average
    )
    if config.smooth:
        series_N = store.table["series"].to_numpy(dtype=object)[positions_N]
        probs_NK = smooth_over_z(probs_NK, series_N, positions_N)
    rows = store.table.iloc[positions_N]
    keys = ["slice_id", "series", "study", "patient", "position_mm"]
    table = rows[keys].reset_index(drop=True)
    table["fold"] = _fold_N(answers, len(store))[positions_N]
    table["run"] = _names_N(answers, len(store))[positions_N]
    table["trained_on"] = _trained_on_N(answers, len(store))[positions_N]
    table[list(CLASSES)] = probs_NK
    table[list(LABEL_COLUMNS)] = rows[list(CLASSES)].to_numpy()
    return table[list(COLUMNS)]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one run says of a store."""

    name: str
    positions_M: npt.NDArray[np.int64]
    fold_M: npt.NDArray[np.int8]
    trained_on_M: Floats
    """1, 0, or NaN where it is not known."""
    probs_MK: Floats


def _answer(
    run: TrainedRun, store: Store, device: torch.device, config: PredictConfig
) -> _Answer:
    positions_M, fold_N = _slices_to_predict(run, store)
    if config.limit is not None and config.limit < len(positions_M):
        spread = np.linspace(0, len(positions_M) - 1, config.limit).astype(int)
        positions_M = positions_M[spread]
    trained_N = trained_on_N(run, store)
    return _Answer(
        name=run.name,
        positions_M=positions_M,
        fold_M=fold_N[positions_M],
        trained_on_M=(
            np.full(len(positions_M), np.nan)
            if trained_N is None
            else trained_N[positions_M]
        ),
        probs_MK=_predict(run, store, positions_M, device, config),
    )


def _slices_to_predict(
    run: TrainedRun, store: Store
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Store positions, and the fold of every slice of the store."""
    if run.trained_on(store):
        split = split_slices(store, run.record.recipe.folds)
        return split.valid_N, split.fold_N
    everything_N = np.arange(len(store), dtype=np.int64)
    return everything_N, np.full(len(store), -1, dtype=np.int8)


def _predict(
    run: TrainedRun,
    store: Store,
    positions_M: npt.NDArray[np.int64],
    device: torch.device,
    config: PredictConfig,
) -> Floats:
    """One run's probabilities, shape (M, K), its passes averaged."""
    recipe = run.record.recipe
    model = run.load_model(device)
    batch_size = config.batch_size or _fitting_batch(model, recipe, device)
    data = replace(
        recipe.data, batch_size=min(batch_size, len(positions_M)), cache=config.cache
    )
    passes = tta_passes(config.tta, recipe.augment)
    probs = []
    with make_loader(
        store,
        positions_M,
        data,
        normalization=run.record.normalization,
        augment=passes[0].augment,
        seed=recipe.train.seed,
        device=device.type,
    ) as loader:
        for number, look in enumerate(passes):
            loader.set_augment(look.augment)
            found_M, logits_MK, _ = predict_logits(
                model,
                loader,
                choose_amp(recipe.train.amp, device),
                epoch=number,
                label=f"{run.name} pass {number + 1} of {len(passes)}",
            )
            assert np.array_equal(found_M, positions_M), "the loader changed the order"
            probs.append(logits_MK.double().sigmoid().numpy())
    probs_MK = mix_passes(passes, probs)
    num_odd = int(np.isnan(probs_MK).any(axis=1).sum())
    if num_odd:
        raise PredictionError(
            f"{run.path} gives no number for {num_odd:,} of {len(probs_MK):,} slices: "
            "its weights are damaged; train it again"
        )
    return probs_MK


def _fitting_batch(model: nn.Module, recipe: Recipe, device: torch.device) -> int:
    data = recipe.data
    if device.type == "cuda":
        shape = (data.num_channels, data.size, data.size)
        return largest_batch_on_gpu(model, shape, choose_amp(recipe.train.amp, device))
    return fitting_batch_size(
        data.batch_size, made_for=data.size, size=data.size, device_type=device.type
    )


def average(
    answers: Sequence[tuple[npt.NDArray[np.int64], Floats]], *, how: str
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Average what several runs say of the slices of a store.

    Args:
        answers: of each run, the store positions it predicted, shape (M,), and its
            probabilities, shape (M, K).
        how: ``probs``, or ``logits``, in which a sure answer weighs more.

    Returns:
        Store positions, rising, that any run predicted, shape (N,), and the mean over
        the runs that did, shape (N, K).
    """
    predicted_N = np.unique(np.concatenate([positions for positions, _ in answers]))
    sum_NK = np.zeros((len(predicted_N), answers[0][1].shape[1]))
    count_N1 = np.zeros((len(predicted_N), 1))
    for positions_M, probs_MK in answers:
        rows_M = np.searchsorted(predicted_N, positions_M)
        sum_NK[rows_M] += probs_MK if how == "probs" else logit(probs_MK)
        count_N1[rows_M] += 1
    mean_NK = sum_NK / count_N1
    return predicted_N, mean_NK if how == "probs" else sigmoid(mean_NK)


def _fold_N(answers: Sequence[_Answer], num_slices: int) -> npt.NDArray[np.int8]:
    fold_N = np.full(num_slices, -1, dtype=np.int8)
    for answer in answers:
        fold_N[answer.positions_M] = answer.fold_M
    return fold_N


def _names_N(answers: Sequence[_Answer], num_slices: int) -> npt.NDArray[np.object_]:
    names_N = np.full(num_slices, "", dtype=object)
    for answer in answers:
        before_M = names_N[answer.positions_M]
        names_N[answer.positions_M] = np.where(
            before_M == "", answer.name, before_M + "+" + answer.name
        )
    return names_N


def _trained_on_N(
    answers: Sequence[_Answer], num_slices: int
) -> pd.arrays.BooleanArray:
    """True if any run did, missing if that of any is not known."""
    is_true_N, is_unknown_N = np.zeros((2, num_slices), dtype=bool)
    for answer in answers:
        is_true_N[answer.positions_M] |= answer.trained_on_M == 1
        is_unknown_N[answer.positions_M] |= np.isnan(answer.trained_on_M)
    return pd.arrays.BooleanArray(is_true_N, is_unknown_N & ~is_true_N)
