"""What a trained run says: its predictions, and its page.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from ichfast.activations import activations_of
from ichfast.amp import choose_amp
from ichfast.checkpoint import BEST, load_checkpoint
from ichfast.dataconfig import choose_level
from ichfast.errors import CheckpointError
from ichfast.labels import CLASSES
from ichfast.loader import make_loader
from ichfast.models import build_model
from ichfast.predict import mix_passes, predict_logits, tta_passes
from ichfast.predictions import LABEL_COLUMNS
from ichfast.recipe import Recipe
from ichfast.report import ReportData, write_report
from ichfast.runs import RunRecord, read_history, read_record
from ichfast.settings import to_dict
from ichfast.splits import split_slices
from ichfast.store import Store

LEAK_NOTICE = (
    "Folds were dealt by slice: patients are on both sides, so every figure looks "
    "better than it would on patients it has not seen."
)


def predict_run(
    run_dir: Path,
    *,
    device: torch.device,
    store_path: Path | None = None,
    tta: str = "none",
    limit: int | None = None,
) -> pd.DataFrame:
    """Predict with the best epoch of a run.

    On the store the run trained on, the slices of its validation fold are
    predicted: those it has not seen. On any other, all slices are.

    Args:
        run_dir: a run's folder.
        device: where to compute.
        store_path: another store than the one the run trained on.
        tta: test-time augmentation, a name of `predict.tta_passes`.
        limit: predict so many slices only, spread evenly.

    Returns:
        A table with the columns of `ichfast.predictions`, in store order.

    Raises:
        IchfastError: no run, no good checkpoint, no store.
    """
    record = read_record(run_dir)
    model = load_run_model(run_dir, record.recipe, device)
    with Store(store_path or Path(record.store)) as store:
        positions_N, fold_N = _slices_to_predict(store, record)
        if limit is not None and limit < len(positions_N):
            spread = np.linspace(0, len(positions_N) - 1, limit).astype(int)
            positions_N = positions_N[spread]
        probs_NK = _predict(model, store, positions_N, record, tta, device)
        return _as_table(store, positions_N, fold_N, probs_NK)


def load_run_model(run_dir: Path, recipe: Recipe, device: torch.device) -> nn.Module:
    """Build a run's model with the weights of its best epoch.

    Raises:
        CheckpointError: no checkpoint, or one that does not fit the settings.
    """
    state = load_checkpoint(run_dir / BEST)
    model = build_model(
        recipe.model.arch, in_chans=recipe.data.num_channels, head=recipe.model.head
    )
    try:
        model.load_state_dict(state["model"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{run_dir / BEST} does not fit the settings beside it: "
            f"{str(error).splitlines()[0]}; train again"
        ) from error
    return model.to(device)


def _slices_to_predict(
    store: Store, record: RunRecord
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    if dict(store.header.plan) == record.store_plan:
        split = split_slices(store, record.recipe.folds)
        return split.valid_N, split.fold_N
    everything_N = np.arange(len(store), dtype=np.int64)
    return everything_N, np.full(len(store), -1, dtype=np.int8)


def _predict(
    model: nn.Module,
    store: Store,
    positions_N: npt.NDArray[np.int64],
    record: RunRecord,
    tta: str,
    device: torch.device,
) -> npt.NDArray[np.float64]:
    recipe = record.recipe
    amp = choose_amp(recipe.train.amp, device)
    # A pass reads each slice once: nothing is gained by keeping it.
    config = replace(
        recipe.data,
        batch_size=min(recipe.data.batch_size, len(positions_N)),
        cache="none",
    )
    passes = tta_passes(tta, recipe.augment)
    probs = []
    for number, look in enumerate(passes):
        with make_loader(
            store,
            positions_N,
            config,
            normalization=record.normalization,
            augment=look.augment,
            seed=recipe.train.seed,
            device=device.type,
        ) as loader:
            found_N, logits_NK, _ = predict_logits(
                model,
                loader,
                amp,
                epoch=number,
                label=f"predict {number + 1}/{len(passes)}",
            )
        assert np.array_equal(found_N, positions_N), "the loader changed the order"
        probs.append(logits_NK.double().sigmoid().numpy())
    return mix_passes(passes, probs)


def _as_table(
    store: Store,
    positions_N: npt.NDArray[np.int64],
    fold_N: npt.NDArray[np.int8],
    probs_NK: npt.NDArray[np.float64],
) -> pd.DataFrame:
    rows = store.table.iloc[positions_N]
    keys = ["slice_id", "series", "study", "patient", "position_mm"]
    table = rows[keys].reset_index(drop=True)
    table["fold"] = fold_N[positions_N]
    table[list(CLASSES)] = probs_NK
    table[list(LABEL_COLUMNS)] = rows[list(CLASSES)].to_numpy()
    return table


def report_run(
    run_dir: Path,
    table: pd.DataFrame,
    out: Path,
    *,
    device: torch.device,
    sensitivity: float = 0.95,
    show_ids: bool = False,
) -> None:
    """Write a run's page.

    Args:
        run_dir: a run's folder.
        table: its predictions, on the store it trained on.
        out: the page.
        device: where to compute activation maps.
        sensitivity: of the operating points, in (0, 1].
        show_ids: write slice, study and patient ids into the page.

    Raises:
        IchfastError: no run, no good checkpoint, no store, predictions without labels.
    """
    record = read_record(run_dir)
    recipe = record.recipe
    model = load_run_model(run_dir, recipe, device)
    with Store(record.store) as store:
        position_of = pd.Index(store.table["slice_id"].astype(str))
        level = choose_level(store, recipe.data)

        def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
            return store.slice_HW(int(position_of.get_loc(slice_id)), level)

        def maps_of(slice_ids: Sequence[str]) -> npt.NDArray[np.float32]:
            return activations_of(slice_ids, model, store, record, device)

        write_report(
            out,
            ReportData(
                title=f"{recipe.name}: {recipe.model.arch} at {recipe.data.size} px",
                notices=[LEAK_NOTICE] if recipe.folds.kind == "slice" else [],
                history=read_history(run_dir),
                predictions=table,
                slice_of=slice_of,
                activations_of=maps_of,
                sensitivity=sensitivity,
                recipe=to_dict(recipe),
                environment=record.environment,
                data={**store.header.counts, **record.counts},
                show_ids=show_ids,
            ),
        )
