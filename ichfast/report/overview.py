"""Overview of a store: counts as text, and a contact sheet of its slices.

Shape letters: N slices, K classes, P percentiles.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.labels import CLASSES
from ichfast.loading.splits import NUM_FOLDS, patient_folds
from ichfast.report.pictures import contact_sheet, write_figure
from ichfast.store.series import describe_series
from ichfast.store.store import Store
from ichfast.windows import HU_OFFSET, NUM_STORED_VALUES, PRESETS

NUM_MEASURED = 256
"""Slices that the HU percentiles are measured on, spread over the store."""

PERCENTILES = (0.1, 1, 25, 50, 75, 99, 99.9)
"""Percentiles of the HU that are shown."""

SHEET_WINDOWS = ("brain", "subdural", "bone")
"""Windows of the contact sheet, a row each."""
SHORT = ("EDH", "IPH", "IVH", "SAH", "SDH")
"""The five bleeds as radiologists abbreviate them, in `CLASSES` order."""

NUM_SHOWN = 10
"""Slices on the contact sheet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Counts of a store: of slices, if nothing else is said."""

    slices: int
    series: int
    patients: int
    shapes: dict[str, int]
    """Slices by rows x columns."""
    levels: tuple[int, ...]
    bytes: int
    labelled: int
    """Slices with all six labels."""
    partly_labelled: int
    """Slices with some of the six labels."""
    known: dict[str, int]
    """By class, the slices whose label is known."""
    positives: dict[str, int]
    """Positive slices by class."""
    hu_percentiles: dict[str, float]
    """HU by percentile, over slices spread over the store."""
    bits: dict[str, int]
    transfer_syntaxes: dict[str, int]
    quirks: dict[str, int]
    irregular_series: dict[str, int]
    """Series by irregularity of their order (`ichfast.store.series`)."""
    rejected: dict[str, int]
    """Files by reject code."""
    ids: str
    """``kept`` or ``hashed``."""


def describe_store(store: Store) -> Overview:
    """Count what is in a store."""
    table, header = store.table, store.header
    shapes = table["rows"].astype(str) + "x" + table["columns"].astype(str)
    signs = np.where(table["is_signed"].to_numpy(bool), "signed", "unsigned")
    bits = table["bits_stored"].astype(str) + " " + signs
    labels_NK = store.labels_NK()
    is_known_NK = ~np.isnan(labels_NK)
    num_labelled = int(is_known_NK.all(axis=1).sum())
    return Overview(
        slices=len(store),
        series=table["series"].nunique(),
        patients=table["patient"].nunique(),
        shapes=_counts(shapes),
        levels=store.levels,
        bytes=header.num_bytes,
        labelled=num_labelled,
        partly_labelled=int(is_known_NK.any(axis=1).sum()) - num_labelled,
        known={name: int(is_known_NK[:, k].sum()) for k, name in enumerate(CLASSES)},
        positives={
            name: int(np.nansum(labels_NK[:, k])) for k, name in enumerate(CLASSES)
        },
        hu_percentiles=_hu_percentiles(store),
        bits=_counts(bits),
        transfer_syntaxes=_counts(table["transfer_syntax_uid"].astype(str)),
        quirks=_counts(table["quirks"].astype(str).str.split(";").explode()),
        irregular_series=_irregular_series(table),
        rejected=dict(header.rejected),
        ids="kept" if header.keep_ids else "hashed",
    )


def _counts(values: pd.Series[str]) -> dict[str, int]:
    counts = values[values != ""].value_counts()
    return {str(value): int(count) for value, count in counts.items()}


def _irregular_series(table: pd.DataFrame) -> dict[str, int]:
    counts = Counter(
        irregularity
        for series in describe_series(table)
        for irregularity in series.irregularities
    )
    return dict(counts.most_common())


def _hu_percentiles(store: Store) -> dict[str, float]:
    level = min(store.levels)
    spread = np.linspace(0, len(store) - 1, min(NUM_MEASURED, len(store))).astype(int)
    count_V = np.zeros(NUM_STORED_VALUES, dtype=np.int64)
    for position in spread:
        stored_HW = store.slice_HW(int(position), level)
        count_V += np.bincount(stored_HW.ravel(), minlength=NUM_STORED_VALUES)
    share_V = count_V.cumsum() / count_V.sum()
    values_P = np.searchsorted(share_V, np.array(PERCENTILES) / 100)
    return {
        f"{percent:g}": float(value - HU_OFFSET)
        for percent, value in zip(PERCENTILES, values_P, strict=True)
    }


def format_overview(overview: Overview) -> str:
    """Write an overview as text."""
    percentiles = overview.hu_percentiles.items()
    levels = ", ".join(map(str, overview.levels))
    counts = (
        f"{overview.slices:,} slices of {overview.series:,} series and "
        f"{overview.patients:,} patients; ids are {overview.ids}"
    )
    lines = [
        counts,
        f"levels       {levels}; {overview.bytes / 2**30:.2f} GiB",
        f"shapes       {_listed(overview.shapes)}",
        f"pixels       {_listed(overview.bits)}",
        f"syntaxes     {_listed(overview.transfer_syntaxes)}",
        f"quirks       {_listed(overview.quirks)}",
        f"odd series   {_listed(overview.irregular_series)}",
        f"rejected     {_listed(overview.rejected)}",
        f"labelled     {overview.labelled:,}"
        + (
            f"; partly {overview.partly_labelled:,}" if overview.partly_labelled else ""
        ),
        *(
            f"  {name:17s} {count:8,}  {count / max(overview.known[name], 1):7.2%}"
            for name, count in overview.positives.items()
        ),
        "HU           " + ", ".join(f"{p}%: {hu:g}" for p, hu in percentiles),
    ]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items()) or "none"


def write_contact_sheet(store: Store, out: Path) -> None:
    """Draw a slice of each class and some others, with labels and fold.

    Args:
        store: an open store.
        out: the PNG. Replaced if it exists.

    Raises:
        IchfastError: the picture cannot be written.
    """
    positions = _slices_to_show(store)
    fold_N = _folds(store)
    captions = [_caption(store, int(k), int(fold_N[k])) for k in positions]
    figure = contact_sheet(
        [store.slice_HW(int(k)) for k in positions],
        captions,
        {name: PRESETS[name] for name in SHEET_WINDOWS},
    )
    write_figure(out, figure)


def _slices_to_show(store: Store) -> npt.NDArray[np.int64]:
    """Choose the middle slice of each class, and others spread over the store."""
    labels_NK = store.labels_NK()
    chosen = [
        int(found[len(found) // 2])
        for k in range(1, len(CLASSES))
        if len(found := np.flatnonzero(labels_NK[:, k] == 1))
    ]
    spread = np.linspace(0, len(store) - 1, NUM_SHOWN + 2).astype(int)[1:-1]
    chosen += [int(k) for k in spread if int(k) not in chosen]
    return np.array(list(dict.fromkeys(chosen))[:NUM_SHOWN], dtype=np.int64)


def _folds(store: Store) -> npt.NDArray[np.int8]:
    """Default fold of each slice; -1 without labels, or with too few patients."""
    labels_NK = store.labels_NK()
    labelled_N = np.flatnonzero(~np.isnan(labels_NK).all(axis=1))
    fold_N = np.full(len(store), -1, dtype=np.int8)
    patients_N = store.table["patient"].to_numpy(dtype=object)[labelled_N]
    if len(set(patients_N)) >= NUM_FOLDS:
        fold_N[labelled_N] = patient_folds(patients_N, labels_NK[labelled_N])
    return fold_N


def _caption(store: Store, position: int, fold: int) -> str:
    labels_K = store.labels_NK()[position]
    if np.isnan(labels_K).all():
        return "no labels"
    names = [n for n, label in zip(SHORT, labels_K[1:], strict=True) if label == 1]
    where = f", fold {fold}" if fold >= 0 else ""
    if np.isnan(labels_K).any():
        return " + ".join([*names, "others unknown"])
    return (" + ".join(names) or "negative") + where
