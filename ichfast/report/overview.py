"""Overview of a store: counts as text, and a contact sheet of its slices.

Shape letters: N slices, K classes, P percentiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ichfast.labels import CLASSES
from ichfast.loading.config import pixel_aspects
from ichfast.loading.splits import NUM_FOLDS, patient_folds
from ichfast.report.pictures import contact_sheet, slice_view, write_figure
from ichfast.store.groups import GROUP_COLUMNS, UNKNOWN, groups_N
from ichfast.store.series import describe_series
from ichfast.store.store import Store
from ichfast.store.tables import patients_N
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


MAX_KINDS = 20
"""Upper limit of kinds of series in the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesKind:
    """Slices that were made in the same way, as far as one looks for when selecting."""

    image_type: str
    kernel: str
    contrast: str
    """``unknown`` where the header does not tell."""
    thickness_mm: float | None
    series: int
    """Number of series that have such slices."""
    slices: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Counts of a store: of slices, if nothing else is said."""

    slices: int
    series: int
    patients: int
    shapes: dict[str, int]
    """Slices by rows x columns."""
    nonsquare_pixels: int
    """Slices whose pixels are not square (`ichfast.loading.config.pixel_aspects`)."""
    levels: tuple[int, ...]
    is_packed: bool
    """Whether slices are packed."""
    bytes: int
    labelled: int
    """Slices with all six labels."""
    partly_labelled: int
    """Slices with some of the six labels."""
    known: dict[str, int]
    """By class, the slices whose label is known; and by column, those of the labels of
    series, studies and extra classes (`StoreHeader.known`)."""
    positives: dict[str, int]
    """Labels 1 of the same."""
    hu_percentiles: dict[str, float]
    """HU by percentile, over slices spread over the store."""
    bits: dict[str, int]
    transfer_syntaxes: dict[str, int]
    quirks: dict[str, int]
    series_kinds: tuple[SeriesKind, ...]
    """Kinds of series, the most frequent first."""
    acquisition: dict[str, dict[str, int]]
    """For each column of `ichfast.store.groups`, the slices by group."""
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
        patients=len(set(patients_N(table))),
        shapes=_counts(shapes),
        nonsquare_pixels=int((pixel_aspects(table) != 1).sum()),
        levels=store.levels,
        is_packed=store.is_packed,
        bytes=header.num_bytes,
        labelled=num_labelled,
        partly_labelled=int(is_known_NK.any(axis=1).sum()) - num_labelled,
        known={name: int(is_known_NK[:, k].sum()) for k, name in enumerate(CLASSES)}
        | _others(header.known),
        positives={
            name: int(np.nansum(labels_NK[:, k])) for k, name in enumerate(CLASSES)
        }
        | _others(header.positives),
        hu_percentiles=_hu_percentiles(store),
        bits=_counts(bits),
        transfer_syntaxes=_counts(table["transfer_syntax_uid"].astype(str)),
        quirks=_counts(table["quirks"].astype(str).str.split(";").explode()),
        series_kinds=_series_kinds(table),
        acquisition={
            column: _counts(groups_N(table, column).astype(str))
            for column in GROUP_COLUMNS
        },
        irregular_series=_irregular_series(table),
        rejected=dict(header.rejected),
        ids="kept" if header.keep_ids else "hashed",
    )


def _others(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name not in CLASSES}


def _counts(values: pd.Series[str]) -> dict[str, int]:
    counts = values[values != ""].value_counts()
    return {str(value): int(count) for value, count in counts.items()}


def _series_kinds(table: pd.DataFrame) -> tuple[SeriesKind, ...]:
    names = ["image_type", "kernel", "contrast"]
    rows = table[names].astype(object).fillna(UNKNOWN)
    rows["thickness_mm"] = table["thickness_mm"].round(1)
    rows["series"] = table.groupby(["patient", "study", "series"], sort=False).ngroup()
    groups = rows.groupby([*names, "thickness_mm"], dropna=False)["series"]
    kinds = [
        SeriesKind(
            **dict(zip(names, key, strict=False)),
            thickness_mm=None if np.isnan(key[-1]) else float(key[-1]),
            series=each.nunique(),
            slices=len(each),
        )
        for key, each in groups
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.slices))


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
        f"levels       {levels}; {overview.bytes / 2**30:.2f} GiB"
        + (", packed" if overview.is_packed else ""),
        f"shapes       {_listed(overview.shapes)}"
        + (
            f"; pixels are not square: {overview.nonsquare_pixels:,}"
            if overview.nonsquare_pixels
            else ""
        ),
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
    lines += ["kinds of series", *map(_kind_line, overview.series_kinds[:MAX_KINDS])]
    if len(overview.series_kinds) > MAX_KINDS:
        lines.append(f"  {len(overview.series_kinds) - MAX_KINDS} more kinds")
    lines += [
        f"{column:16s} {_listed(counts)}"
        for column, counts in overview.acquisition.items()
        if set(counts) != {UNKNOWN}
    ]
    return "\n".join(lines)


def _kind_line(kind: SeriesKind) -> str:
    thickness = (
        f"{kind.thickness_mm:g} mm" if kind.thickness_mm else "unknown thickness"
    )
    return (
        f"  {kind.image_type} image, {kind.kernel} kernel, contrast {kind.contrast}, "
        f"{thickness}: {kind.series:,} series, {kind.slices:,} slices"
    )


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
        [
            slice_view(store, int(k), max(store.levels), square_pixels=True)
            for k in positions
        ],
        captions,
        {name: PRESETS[name] for name in SHEET_WINDOWS},
    )
    advice = "; make room, or name another file with --sheet"
    write_figure(out, figure, advice)


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
    patient_N = patients_N(store.table)[labelled_N]
    if len(set(patient_N)) >= NUM_FOLDS:
        fold_N[labelled_N] = patient_folds(patient_N, labels_NK[labelled_N])
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
