"""Prediction of a store with one or more trained runs.

1. On the store it was trained on, a run predicts the slices of its validation fold,
   which it has not seen. On that store after an append it predicts the slices of all
   patients on whom its weights were not trained. On any other store it predicts all.
2. A slice gets the average over the runs that predict it. So the runs of all folds
   predict their store out of fold, and any other store as an ensemble.
3. The passes of test-time augmentation are averaged first, then the runs; smoothing
   over z comes last.
4. For each slice the table names the runs that predicted it, and tells whether one of
   them, or a run from whose weights it started, was trained on its patient.

Shape letters: N slices of the store, M slices that a run predicts, K classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import Floats, logit, sigmoid
from ichfast.evaluation.predictions import COLUMNS, LABEL_COLUMNS
from ichfast.labels import CLASSES
from ichfast.loading.id_files import read_id_file
from ichfast.loading.loader import make_loader
from ichfast.loading.splits import ID_FILES, in_run_folder, split_slices
from ichfast.models.precision import choose_amp
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.resolve import fitting_batch_size
from ichfast.runs.device import largest_batch_on_gpu
from ichfast.runs.trained import TrainedRun, open_ensemble
from ichfast.series.smoothing import smooth_over_z
from ichfast.store.store import Store
from ichfast.store.tables import BAG_LABELS
from ichfast.training.inference import mix_passes, predict_logits, tta_passes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """How slices are predicted."""

    tta: str = "none"
    """Test-time augmentation: a name that `training.inference.tta_passes` takes."""

    average: str = "probs"
    """What is averaged over several runs: ``probs`` or ``logits``."""

    smooth: bool = False
    """Average each slice with its neighbours in its series."""

    batch_size: int | None = None
    """Slices at a time; None: as many as fit on a GPU, or the recipe's on a CPU."""

    cache: str = "none"
    """Where slices are kept between the passes of a run: a name of
    `loading.config.CACHES`."""

    only: Path | None = None
    """A file with the ids of the slices, series, studies or patients to predict
    (`ichfast.loading.id_files`); None: all."""

    limit: int | None = None
    """Upper limit of slices for each run, spread evenly over them; None: no limit."""

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
        store_path: the store to predict; None: the one that the runs trained on.
        config: test-time augmentation, averaging, smoothing, batch size and so on.

    Returns:
        A table with the columns of `ichfast.evaluation.predictions`, in store order.

    Raises:
        IchfastError: no run, no valid checkpoint, no store, or runs that cannot be
            averaged.

    Example:
        >>> from pathlib import Path
        >>> import ichfast, torch
        >>> cpu = torch.device("cpu")
        >>> table = ichfast.predict_runs([Path("runs/first")], device=cpu)
        >>> bool(table["any"].dropna().between(0, 1).all())
        True
    """
    runs = open_ensemble(paths)
    with Store(store_path or _common_store(runs)) as store:
        return predict_store(runs, store, device=device, config=config)


def _common_store(runs: Sequence[TrainedRun]) -> Path:
    stores = {run.find_store().resolve(): run for run in runs}
    if len(stores) > 1:
        shown = ", ".join(f"{run.path} on {store}" for store, run in stores.items())
        raise PredictionError(
            f"the runs trained on different stores ({shown}); "
            "name the one to predict with --store"
        )
    return next(iter(stores))


def predict_store(
    runs: Sequence[TrainedRun],
    store: Store,
    *,
    device: torch.device,
    config: PredictConfig,
) -> pd.DataFrame:
    """Predict an open store with one or more opened runs.

    Args:
        runs: runs that can be averaged, as `open_ensemble` returns them.
        store: the store to predict.
        device: where to compute.
        config: test-time augmentation, averaging, smoothing, batch size and so on.

    Returns:
        A table with the columns of `ichfast.evaluation.predictions`, in store order.

    Raises:
        IchfastError: no valid checkpoint, or settings that do not fit the store.
    """
    is_listed_N = np.ones(len(store), dtype=np.bool_)
    if config.only is not None:
        listed = read_id_file(config.only, store, has_folds=False)
        is_listed_N = listed.position_N(store) >= 0
    predictions = [
        _predict_run(run, store, is_listed_N, device, config) for run in runs
    ]
    positions_N, probs_NK = average(
        [(each.positions_M, each.probs_MK) for each in predictions], how=config.average
    )
    if config.smooth:
        series_N = store.table["series"].to_numpy(dtype=object)[positions_N]
        probs_NK = smooth_over_z(probs_NK, series_N, positions_N)
    rows = store.table.iloc[positions_N]
    keys = ["slice_id", "series", "study", "patient", "position_mm"]
    table = rows[keys].reset_index(drop=True)
    table["fold"] = _fold_N(predictions, len(store))[positions_N]
    table["run"] = _names_N(predictions, len(store))[positions_N]
    table["trained_on"] = _trained_on_N(predictions, len(store))[positions_N]
    table[list(CLASSES)] = probs_NK
    labels = rows.reset_index(drop=True)
    table[list(LABEL_COLUMNS)] = labels[list(CLASSES)]
    bags = [
        name
        for names in BAG_LABELS.values()
        if store.table[list(names)].notna().any(axis=None)
        for name in names
    ]
    table[bags] = labels[bags]
    return table[[*COLUMNS, *bags]]


@dataclass(frozen=True, slots=True)
class _RunPredictions:
    """The predictions of one run for a store."""

    name: str
    positions_M: npt.NDArray[np.int64]
    fold_M: npt.NDArray[np.int8]
    trained_on_M: Floats
    """1 or 0; NaN where it is not known."""
    probs_MK: Floats


def _predict_run(
    run: TrainedRun,
    store: Store,
    is_listed_N: npt.NDArray[np.bool_],
    device: torch.device,
    config: PredictConfig,
) -> _RunPredictions:
    trained_N = _trained_N(run, store)
    positions_M, fold_N = _slices_to_predict(run, store, trained_N)
    positions_M = positions_M[is_listed_N[positions_M]]
    if not positions_M.size:
        raise PredictionError(
            f"{config.only} has none of the slices that {run.path} predicts; name a "
            "store with --store to predict all of it"
        )
    if config.limit is not None and config.limit < len(positions_M):
        spread = np.linspace(0, len(positions_M) - 1, config.limit).astype(int)
        positions_M = positions_M[spread]
    return _RunPredictions(
        name=run.name,
        positions_M=positions_M,
        fold_M=fold_N[positions_M],
        trained_on_M=trained_N[positions_M],
        probs_MK=_predict(run, store, positions_M, device, config),
    )


def _trained_N(run: TrainedRun, store: Store) -> Floats:
    """`TrainingPatients.trained_on_N`, with a warning where that is not known."""
    trained_N = run.patients.trained_on_N(store)
    num_unknown = int(np.isnan(trained_N).sum())
    if num_unknown:
        logger.warning(
            "cannot tell for %d of %d slices whether %s was trained on their patients: "
            "%s",
            num_unknown,
            len(store),
            run.name,
            "its store named patients in another way, or had a different key"
            if run.patients.is_complete
            else "it started from weights that do not name theirs",
        )
    return trained_N


def _slices_to_predict(
    run: TrainedRun, store: Store, trained_N: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Return the positions to predict, and the fold of every slice of the store."""
    if run.trained_on(store):
        split = split_slices(store, in_run_folder(run.record.recipe.folds, run.path))
        for setting, file in split.files.items():
            if run.record.id_files.get(setting) != file.digest:
                raise PredictionError(
                    f"{run.path / ID_FILES[setting]} was edited; copy back the file as "
                    "it was, or train again"
                )
        return split.valid_N, split.fold_N
    positions_N = np.arange(len(store), dtype=np.int64)
    if run.trained_before(store):
        positions_N = positions_N[trained_N != 1]
        if not positions_N.size:
            raise PredictionError(
                f"{run.path} was trained on every patient of {store.path}; append "
                "other patients, or name another store with --store"
            )
    return positions_N, np.full(len(store), -1, dtype=np.int8)


def _predict(
    run: TrainedRun,
    store: Store,
    positions_M: npt.NDArray[np.int64],
    device: torch.device,
    config: PredictConfig,
) -> Floats:
    """Return the probabilities of one run, shape (M, K), averaged over its passes."""
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
        for number, tta_pass in enumerate(passes):
            loader.set_augment(tta_pass.augment)
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
    num_undefined = int(np.isnan(probs_MK).any(axis=1).sum())
    if num_undefined:
        raise PredictionError(
            f"{run.path} predicts NaN for {num_undefined:,} of {len(probs_MK):,} "
            "slices: its weights are damaged; train it again"
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
    predictions: Sequence[tuple[npt.NDArray[np.int64], Floats]], *, how: str
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Average the predictions of several runs.

    Args:
        predictions: for each run the store positions it predicted, shape (M,), and
            its probabilities, shape (M, K).
        how: ``probs``; or ``logits``, which gives certain predictions more weight.

    Returns:
        The rising store positions that any run predicted, shape (N,), and the mean
        over the runs that predicted each, shape (N, K).
    """
    predicted_N = np.unique(np.concatenate([positions for positions, _ in predictions]))
    sum_NK = np.zeros((len(predicted_N), predictions[0][1].shape[1]))
    count_N1 = np.zeros((len(predicted_N), 1))
    for positions_M, probs_MK in predictions:
        rows_M = np.searchsorted(predicted_N, positions_M)
        sum_NK[rows_M] += probs_MK if how == "probs" else logit(probs_MK)
        count_N1[rows_M] += 1
    mean_NK = sum_NK / count_N1
    return predicted_N, mean_NK if how == "probs" else sigmoid(mean_NK)


def _fold_N(
    predictions: Sequence[_RunPredictions], num_slices: int
) -> npt.NDArray[np.int8]:
    fold_N = np.full(num_slices, -1, dtype=np.int8)
    for each in predictions:
        fold_N[each.positions_M] = each.fold_M
    return fold_N


def _names_N(
    predictions: Sequence[_RunPredictions], num_slices: int
) -> npt.NDArray[np.object_]:
    names_N = np.full(num_slices, "", dtype=object)
    for each in predictions:
        before_M = names_N[each.positions_M]
        names_N[each.positions_M] = np.where(
            before_M == "", each.name, before_M + "+" + each.name
        )
    return names_N


def _trained_on_N(
    predictions: Sequence[_RunPredictions], num_slices: int
) -> pd.arrays.BooleanArray:
    """True if any run trained on the patient, missing if that is not known."""
    is_true_N, is_unknown_N = np.zeros((2, num_slices), dtype=bool)
    for each in predictions:
        is_true_N[each.positions_M] |= each.trained_on_M == 1
        is_unknown_N[each.positions_M] |= np.isnan(each.trained_on_M)
    return pd.arrays.BooleanArray(is_true_N, is_unknown_N & ~is_true_N)
