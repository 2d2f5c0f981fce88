"""Series are split as their backbones were, with the labels that they have."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ichfast.errors import FoldError, PredictionError
from ichfast.runs.patients import NOBODY
from ichfast.runs.trained import open_run
from ichfast.series.features import Features
from ichfast.series.split import SeriesSplit, choose_fold, split_series
from ichfast.store.store import Store
from tests.conftest import draw_slice
from tests.runs.trainedruns import write_folds, write_run
from tests.series.seriesruns import CONFIG, train, write_features
from tests.store.slice_store import bag_labels, write_slices

SERIES = (
    *(("P1", "S1", "R1", 3), ("P1", "S1", "R2", 1), ("P2", "S2", "R3", 2)),
    *(("P3", "S3", "R4", 2), ("P4", "S4", "R5", 4)),
)
"""Patient, study, series and slices. A study has two series, one of a single slice."""


def write_bag_store(
    path: Path,
    labels_NK: np.ndarray[Any, np.dtype[np.float64]],
    bags: Mapping[str, Any],
) -> Path:
    """Write a store of `SERIES`.

    Args:
        path: its folder; must not exist.
        labels_NK: 0, 1 or NaN.
        bags: for a series or study, further columns of its rows.
    """
    none = bag_labels("series") | bag_labels("study")
    rows = [
        {"patient": patient, "study": study, "series": series, "instance_number": k}
        | {"position_mm": 5.0 * k, "slice_id": f"{series}_{k}", "labelled": True}
        | none
        | bags.get(study, {})
        | bags.get(series, {})
        for patient, study, series, count in SERIES
        for k in range(count)
    ]
    rng = np.random.default_rng(0)
    slices = [draw_slice(rng, 24, 24) for _ in rows]
    write_slices(path, slices, rows, labels_NK, plan={"ids": "plain"})
    return path


def known_labels() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(1).integers(0, 2, size=(12, 6)).astype(np.float64)


@pytest.fixture(scope="module")
def study_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only studies have labels."""
    bags = {f"S{n}": bag_labels("study", any=n % 2, subdural=0) for n in (1, 2, 3, 4)}
    folder = tmp_path_factory.mktemp("studies")
    return write_bag_store(folder / "store", np.full((12, 6), np.nan), bags)


@pytest.fixture(scope="module")
def study_runs(study_store: Path) -> list[Path]:
    return write_folds(study_store.parent, study_store)


def split_of(
    features_dir: Path, store: Store, fold: int = 0, **changes: Any
) -> SeriesSplit:
    features = Features.open(features_dir)
    runs = [
        replace(open_run(Path(run.path)), **changes) for run in features.header.runs
    ]
    return split_series(features, store, runs, fold)


def test_each_labelled_series_trains_or_validates(
    one_features: Path, tiny_store: Store
) -> None:
    split = split_of(one_features, tiny_store)
    rows = np.concatenate([split.train.rows_M, split.valid.rows_M])
    labelled = ~np.isnan(tiny_store.labels_NK()).any(axis=1)
    assert sorted(rows) == np.flatnonzero(labelled).tolist()
    assert len(split.train) + len(split.valid) == 5
    for arrays in (split.train, split.valid):
        for rows_Z in arrays.rows:
            assert tiny_store.table["series"].iloc[rows_Z].nunique() == 1
    patients = tiny_store.table["patient"].to_numpy()
    trained, validated = (
        set(patients[each.rows_M]) for each in (split.train, split.valid)
    )
    assert not trained & validated


def test_a_study_label_is_that_of_each_of_its_series(
    study_store: Path, study_runs: list[Path], tmp_path: Path
) -> None:
    folder = write_features(tmp_path / "features", study_store, study_runs[:1])
    with Store(study_store) as store:
        split = split_of(folder, store)
    found = {}
    for arrays in (split.train, split.valid):
        assert np.isnan(arrays.labels_NK).all()
        np.testing.assert_array_equal(arrays.bag_labels_SK, arrays.series_labels_SK)
        for rows, labels in zip(arrays.rows, arrays.series_labels_SK, strict=True):
            found[int(rows[0])] = labels.tolist()
    nan = math.nan
    np.testing.assert_array_equal(
        [found[first] for first in (0, 3, 4, 6, 8)],
        [[n % 2, nan, nan, nan, nan, 0] for n in (1, 1, 2, 3, 4)],
    )


def test_a_head_trains_on_labels_of_studies_alone(
    study_store: Path, study_runs: list[Path], tmp_path: Path
) -> None:
    folder = write_features(tmp_path / "features", study_store, study_runs[:1])
    report = train(folder, tmp_path / "out", replace(CONFIG, epochs=2))
    assert report.epochs == 2
    assert report.blended <= report.slice_model * (1 + 1e-12)


def test_a_study_label_gives_way_to_finer_ones(tmp_path: Path) -> None:
    labels = np.full((12, 6), np.nan)
    labels[0, 1] = 1.0  # a slice of R1
    bags = {
        "S1": bag_labels("study", any=1, epidural=1, subdural=1),
        "R2": bag_labels("series", subdural=0),
        **{f"S{n}": bag_labels("study", any=n % 2) for n in (2, 3, 4)},
    }
    path = write_bag_store(tmp_path / "store", labels, bags)
    runs = write_folds(tmp_path, path)
    folder = write_features(tmp_path / "features", path, runs[:1])
    with Store(path) as store:
        split = split_of(folder, store)
    of_series = {
        int(rows[0]): labels
        for arrays in (split.train, split.valid)
        for rows, labels in zip(arrays.rows, arrays.series_labels_SK, strict=True)
    }
    nan = math.nan
    np.testing.assert_array_equal(of_series[0], [1, nan, nan, nan, nan, nan])
    np.testing.assert_array_equal(of_series[3], [1, nan, nan, nan, nan, 0])


def test_slices_without_features_are_left_out(
    tiny_store: Store, fold_runs: list[Path], tmp_path: Path
) -> None:
    folder = write_features(tmp_path / "features", tiny_store.path, fold_runs)
    features = Features.open(folder)
    run_N = np.array(features.run_N)
    of_series = {
        name: np.flatnonzero(tiny_store.table["series"] == name)
        for name in ("R1", "R2", "R5")
    }
    assert (run_N[of_series["R5"]] == -1).all()  # it has no labels
    run_N[of_series["R1"][[1, 4]]] = -1
    run_N[of_series["R2"]] = -1
    holed = replace(features, run_N=run_N)
    runs = [open_run(path) for path in fold_runs]
    whole, split = (
        split_series(each, tiny_store, runs, 0) for each in (features, holed)
    )

    def rows(split: SeriesSplit) -> list[list[int]]:
        return sorted(
            each.tolist() for part in (split.train, split.valid) for each in part.rows
        )

    expected = [each for each in rows(whole) if each[0] != of_series["R2"][0]]
    assert expected[0] == of_series["R1"].tolist()
    expected[0] = np.delete(of_series["R1"], [1, 4]).tolist()
    assert rows(split) == expected
    for part in (split.train, split.valid):
        assert len(part.series_labels_SK) == len(part)


def test_series_that_the_backbone_left_out_are_left_out(
    tiny_store: Store, tmp_path: Path
) -> None:
    of_two = tiny_store.table[tiny_store.table["patient"].isin(["P1", "P2"])]
    ids = [each for each in of_two["slice_id"] if each != "ID_R1_3"]
    only = tmp_path / "only.csv"
    only.write_text("\n".join(["slice_id", *ids, ""]))
    run = write_run(tmp_path / "run", tiny_store.path, f"folds.only={only}")
    folder = write_features(tmp_path / "features", tiny_store.path, [run])
    split = split_of(folder, tiny_store)
    rows = np.concatenate([split.train.rows_M, split.valid.rows_M])
    assert set(tiny_store.table["patient"].iloc[rows]) == {"P1", "P2"}
    # A slice that takes no part is read, but has no label.
    assert sorted(rows) == of_two.index.tolist()
    labelled = np.flatnonzero(~np.isnan(split.train.labels_NK).any(axis=1))
    assert tiny_store.table["slice_id"].iloc[labelled].tolist() == ids


def test_folds_by_slice_are_refused(tiny_store: Store, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_store.path, "folds.kind=slice")
    folder = write_features(tmp_path / "features", tiny_store.path, [run])
    with pytest.raises(FoldError, match=r"folds by slice.* train it with --set folds"):
        split_of(folder, tiny_store)


def test_runs_with_other_folds_than_each_other_are_refused(
    tiny_store: Store, tmp_path: Path
) -> None:
    runs = [
        write_run(tmp_path / "a", tiny_store.path, "folds.fold=0"),
        write_run(tmp_path / "b", tiny_store.path, "folds.fold=1", "folds.seed=7"),
    ]
    folder = write_features(tmp_path / "features", tiny_store.path, runs)
    with pytest.raises(
        FoldError, match=r"split patients differently \(folds.num_folds"
    ):
        split_of(folder, tiny_store)


def test_features_of_other_folds_than_their_runs_are_refused(
    tiny_store: Store, fold_runs: list[Path], tmp_path: Path
) -> None:
    swapped = write_features(
        tmp_path / "one", tiny_store.path, fold_runs[1:], fold_of_run=False
    )
    with pytest.raises(PredictionError, match="features of other folds than its runs"):
        split_of(swapped, tiny_store)
    features = Features.open(
        write_features(tmp_path / "two", tiny_store.path, fold_runs)
    )
    mixed = replace(
        features, run_N=np.where(features.run_N >= 0, 0, -1).astype(np.int8)
    )
    runs = [open_run(path) for path in fold_runs]
    with pytest.raises(PredictionError, match="features of other folds than its runs"):
        split_series(mixed, tiny_store, runs, 0)


def test_a_backbone_of_another_store_is_refused(
    one_features: Path, tiny_store: Store, study_runs: list[Path]
) -> None:
    features = Features.open(one_features)
    with pytest.raises(FoldError, match=r"trained on another store than .*; a head"):
        split_series(features, tiny_store, [open_run(study_runs[0])], 0)


def test_features_of_one_fold_of_several_do_not_train(
    tiny_store: Store, fold_runs: list[Path], tmp_path: Path
) -> None:
    features = Features.open(write_features(tmp_path / "f", tiny_store.path, fold_runs))
    runs = [open_run(path) for path in fold_runs]
    for number, purpose in enumerate(("train", "validate")):
        run_N = np.where(features.run_N == number, features.run_N, -1)
        part = replace(features, run_N=run_N.astype(np.int8))
        with pytest.raises(FoldError, match=f"no series to {purpose} on with fold 0"):
            split_series(part, tiny_store, runs, 0)


def test_the_fold_is_that_of_a_run(fold_features: Path) -> None:
    features = Features.open(fold_features)
    assert choose_fold(features, None) == 0
    assert choose_fold(features, 1) == 1
    with pytest.raises(FoldError, match="hold out fold 0, 1, not 2; choose another"):
        choose_fold(features, 2)


def test_patients_of_a_run_before_are_counted(
    one_features: Path, tiny_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    assert split_of(one_features, tiny_store).counts.valid_patients_seen == 0
    assert caplog.text == ""
    unknown = replace(NOBODY, is_complete=False)
    with caplog.at_level(logging.WARNING):
        split = split_of(one_features, tiny_store, patients=unknown)
    assert split.counts.valid_patients_seen == split.counts.valid_patients > 0
    assert "a backbone was trained before, or may have been" in caplog.text
