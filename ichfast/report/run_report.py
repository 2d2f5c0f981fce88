"""The report of a trained run: its record, history, store and model go on one page.

A series run is reported as one of slices is: the curves are those of its head, and the
maps those of the backbone that held out the fold which validates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ichfast.errors import PredictionError
from ichfast.evaluation.subgroups import groups_of
from ichfast.labels import CLASSES
from ichfast.loading.config import choose_level
from ichfast.recipes.recipe import Recipe
from ichfast.recipes.settings import to_dict
from ichfast.report.activations import activations_of
from ichfast.report.page import ReportData, write_report
from ichfast.report.pictures import slice_view
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.series.folder import SeriesRun, is_series_run, open_series_run
from ichfast.store.groups import Groups
from ichfast.store.store import Store
from ichfast.training.history import read_history

REPORT_COLUMNS = (
    *("manufacturer", "kernel", "contrast", "image_type", "sex", "age_decade"),
    "thickness_mm",
)
"""Columns of the store whose groups are on the page."""

LEAK_NOTICE = (
    "Folds were dealt by slice: patients are on both sides, so every figure looks "
    "better than it would on patients it has not seen."
)


def report_run(
    run_dir: Path,
    table: pd.DataFrame,
    out: Path,
    *,
    device: torch.device,
    store_path: Path | None = None,
    sensitivity: float = 0.95,
    show_ids: bool = False,
) -> None:
    """Write the report of a run.

    Args:
        run_dir: the folder of the run, or of a series run.
        table: its predictions for a store.
        out: the page. Replaced if it exists.
        device: where to compute activation maps.
        store_path: the store of the predictions; None: the one that the run was
            trained on.
        sensitivity: sensitivity of the operating points, in (0, 1].
        show_ids: write slice, study and patient ids on the page.

    Raises:
        IchfastError: no run, no valid checkpoint, no store, predictions without labels,
            or predictions of slices that are not in the store.
    """
    run, shown = _open(run_dir)
    backbone = shown.backbone
    record, recipe = backbone.record, backbone.record.recipe
    model = backbone.load_model(device)
    with Store(store_path or run.find_store()) as store:
        position_of = pd.Index(store.table["slice_id"].astype(str))
        _check_same_slices(table, position_of, store)
        level = choose_level(store, recipe.data)

        # As the model sees it, so that a map covers the whole picture.
        def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
            return slice_view(
                store,
                int(position_of.get_loc(slice_id)),
                level,
                square_pixels=recipe.data.square_pixels,
            )

        def maps_of(slice_ids: Sequence[str]) -> npt.NDArray[np.float32] | None:
            return activations_of(slice_ids, model, store, record, device)

        write_report(
            out,
            ReportData(
                title=shown.title,
                notices=_notices(shown, table),
                history=read_history(run_dir),
                predictions=table,
                groups=_groups(table, store),
                slice_of=slice_of,
                activations_of=maps_of,
                sensitivity=sensitivity,
                calibration=run.record.calibration,
                recipe=shown.settings,
                environment=to_dict(run.record.environment),
                data={**store.header.counts, **to_dict(run.record.counts)},
                show_ids=show_ids,
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """What the page shows of a run in a way of its own."""

    title: str
    backbone: TrainedRun
    """The network that the maps are of."""
    settings: Mapping[str, Any]
    has_slice_folds: bool


def _open(run_dir: Path) -> tuple[TrainedRun | SeriesRun, _Shown]:
    if is_series_run(run_dir):
        run = open_series_run(run_dir)
        return run, _shown_of_series(run)
    slice_run = open_run(run_dir)
    recipe = slice_run.record.recipe
    return slice_run, _Shown(
        title=f"{recipe.name}: {recipe.model.arch} at {recipe.data.size} px",
        backbone=slice_run,
        settings=to_dict(_without_paths(recipe)),
        has_slice_folds=recipe.folds.kind == "slice",
    )


def _shown_of_series(run: SeriesRun) -> _Shown:
    record, recipes = run.record, [each.record.recipe for each in run.backbones]
    folds = [each.fold for each in record.features]
    number = folds.index(record.fold) if record.fold in folds else 0
    recipe = recipes[number]
    return _Shown(
        title=f"Series head ({record.series.kind}) over {recipe.model.arch} at "
        f"{recipe.data.size} px",
        backbone=run.backbones[number],
        settings={
            "head": to_dict(record.series),
            "share of the head": dict(zip(CLASSES, record.blend, strict=True)),
            "backbones": len(recipes),
            "backbone": to_dict(_without_paths(recipe)),
        },
        has_slice_folds=any(each.folds.kind == "slice" for each in recipes),
    )


def _groups(table: pd.DataFrame, store: Store) -> dict[str, Groups]:
    """The groups of the predicted slices in the columns where there are several."""
    groups = groups_of(table, store.table, REPORT_COLUMNS)
    return {name: each for name, each in groups.items() if each.nunique() > 1}


def _notices(shown: _Shown, table: pd.DataFrame) -> list[str]:
    """What a reader must know about the figures."""
    notices = [LEAK_NOTICE] if shown.has_slice_folds else []
    # Missing where that is not known.
    num_seen = int(table["trained_on"].fillna(value=True).sum())
    if num_seen and not notices:
        notices.append(
            f"{num_seen:,} of {len(table):,} slices are of patients on whom this "
            "model, or one from whose weights it started, was trained, or may have "
            "been: every figure looks better than on new patients."
        )
    return notices


def _without_paths(recipe: Recipe) -> Recipe:
    """The recipe with the name of its weights only: a folder may name a person."""
    name = Path(recipe.model.weights).name
    return replace(recipe, model=replace(recipe.model, weights=name))


def _check_same_slices(
    table: pd.DataFrame, position_of: pd.Index[str], store: Store
) -> None:
    num_other = int((~table["slice_id"].astype(str).isin(position_of)).sum())
    if num_other:
        raise PredictionError(
            f"{num_other:,} of {len(table):,} predicted slices are not in "
            f"{store.path}; a report shows predictions of one store: name it with "
            "--store"
        )
