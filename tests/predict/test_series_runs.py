"""Series runs predict: networks, head and blend, for each pass and each backbone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from ichfast.evaluation.logits import sigmoid
from ichfast.evaluation.predictions import (
    COLUMNS,
    ENTROPY_COLUMNS,
    SERIES_PROB_COLUMNS,
    STD_COLUMNS,
    probs_NK,
)
from ichfast.labels import CLASSES
from ichfast.loading.splits import Split
from ichfast.predict import probabilities
from ichfast.predict.coverage import Positions, cover, whole_series
from ichfast.predict.ensemble import PredictConfig, kept_predictions, predict_runs
from ichfast.predict.extract import extract_features
from ichfast.predict.from_dicom import predict_dicom
from ichfast.predict.journal import Journal, Part, Rows, journal_folder
from ichfast.runs.patients import patients_of_slices
from ichfast.runs.trained import TrainedRun
from ichfast.series.folder import open_series_run, read_series
from ichfast.series.record import read_series_record, write_series_record
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.conftest import write_store
from tests.runs.trainedruns import write_folds
from tests.series.seriesruns import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread_and_seed")]

CPU = torch.device("cpu")
BLEND = (0.25, 0.5, 0.75, 1.0, 0.5, 0.0)


@pytest.fixture(scope="module")
def folds(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    return write_folds(tmp_path_factory.mktemp("folds"), tiny_store_path)


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "store"
    write_store(path, plan={"listing": "another"})
    return path


def series_run(folder: Path, runs: Sequence[Path], fold: int) -> Path:
    """Train a head on the features of runs, and give it a blend of all shares."""
    extract_features(runs, folder / "features", device=CPU)
    train(folder / "features", folder / "series", fold=fold)
    record = read_series_record(folder / "series")
    write_series_record(folder / "series", replace(record, blend=BLEND))
    return folder / "series"


@pytest.fixture(scope="module")
def both(folds: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series run of fold 1, on the out-of-fold features of both runs."""
    return series_run(tmp_path_factory.mktemp("both"), folds, 1)


class Stop(Exception):  # noqa: N818
    """Ends a prediction before its journal is removed."""


def predicted(
    run: Path, out: Path, store: Path | None = None, **options: Any
) -> tuple[pd.DataFrame, Path]:
    """The table of a run, and the folder with the rows of its networks."""
    found = []
    with (
        suppress(Stop),
        kept_predictions(
            [run],
            out,
            device=CPU,
            ranks=Ranks(),
            store_path=store,
            config=PredictConfig(**options),
        ) as table,
    ):
        assert table is not None
        found.append(table)
        raise Stop
    return found[0], journal_folder(out)


def read_rows(folder: Path, number_of_pass: str, num_rows: int) -> Rows:
    """All rows of a task in a pass, such as ``0-1``."""
    paths = sorted(folder.glob(f"{number_of_pass}-*.part"))
    content = b"".join(path.read_bytes()[:-4] for path in paths)
    num_features = (len(content) // num_rows - 24) // 2
    fields = [("logits", "<f4", (6,)), ("features", "<f2", (num_features,))]
    return np.frombuffer(content, np.dtype(fields))


def expected(
    run: Path, rows: Sequence[Rows], store: Store, seen: Positions
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean logits over networks, of slices and of the series of each slice."""
    opened = open_series_run(run)
    head = opened.load_head(CPU)
    table = store.table.iloc[seen]
    found = [
        read_series(head, each["features"], each["logits"], table, BLEND)
        for each in rows
    ]
    return (
        np.mean([each.slices_MK for each in found], axis=0),
        np.mean([each.series_SK[each.series_M] for each in found], axis=0),
    )


def test_on_its_store_it_predicts_its_fold_with_the_backbone_that_held_it_out(
    both: Path, folds: list[Path], tiny_store: Store, tmp_path: Path
) -> None:
    table, folder = predicted(both, tmp_path / "p.csv")
    plain = predict_runs(folds[1:], device=CPU)
    assert table["slice_id"].tolist() == plain["slice_id"].tolist()
    assert tuple(table.columns) == (*COLUMNS, *SERIES_PROB_COLUMNS)
    assert set(table["fold"]) == {1}
    assert set(table["run"]) == {"series"}
    assert not table["trained_on"].any()
    positions = tiny_store.table.index[
        tiny_store.table["slice_id"].isin(table["slice_id"])
    ].to_numpy()
    seen = whole_series(tiny_store, positions)
    rows = read_rows(folder, "0-0", len(seen))
    assert list(folder.glob("1-*")) == []
    slices, series = expected(both, [rows], tiny_store, seen)
    is_wanted = np.isin(seen, positions)
    np.testing.assert_allclose(probs_NK(table), sigmoid(slices)[is_wanted], atol=1e-12)
    np.testing.assert_allclose(
        table[list(SERIES_PROB_COLUMNS)], sigmoid(series)[is_wanted], atol=1e-12
    )
    # The blend leaves this class to the backbone.
    np.testing.assert_allclose(
        table["subdural"], sigmoid(rows["logits"][:, 5].astype(float))[is_wanted]
    )
    np.testing.assert_allclose(table["subdural"], plain["subdural"], atol=1e-6)


def test_of_all_slices_its_own_series_stay_with_the_backbone_that_held_them_out(
    both: Path, other_store: Path, tmp_path: Path
) -> None:
    table, folder = predicted(both, tmp_path / "p.csv", all_slices=True)
    own = predict_runs([both], device=CPU)
    elsewhere = predict_runs([both], device=CPU, store_path=other_store)
    assert table["slice_id"].tolist() == elsewhere["slice_id"].tolist()
    is_own = table["series"].isin(own["series"])
    # P4 has no labels: nothing was trained on them.
    assert (table["trained_on"] == ~(is_own | (table["patient"] == "P4"))).all()
    columns = [*CLASSES, *SERIES_PROB_COLUMNS]
    there = table[table["slice_id"].isin(own["slice_id"])]
    # The batches of the networks are others.
    np.testing.assert_allclose(there[columns], own[columns], atol=1e-3)
    np.testing.assert_allclose(
        table.loc[~is_own, columns], elsewhere.loc[~is_own, columns], atol=1e-3
    )
    num_rows = [len(table), int((~is_own).sum())]
    for task, expected_rows in enumerate(num_rows):
        assert len(read_rows(folder, f"{task}-0", expected_rows)) == expected_rows
    limited = PredictConfig(all_slices=True, limit=7)
    assert len(predict_runs([both], device=CPU, config=limited)) == 7


def test_a_series_with_slices_of_its_fold_is_not_divided_between_backbones(
    both: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = TrainedRun.split

    def split_without_a_label(run: TrainedRun, store: Store) -> Split:
        found = split(run, store)
        return replace(found, valid_N=found.valid_N[1:])

    monkeypatch.setattr(TrainedRun, "split", split_without_a_label)
    run = open_series_run(both)
    own, others = cover(run, tiny_store, all_slices=True, only=None, limit=None)
    series = tiny_store.table["series"].to_numpy(dtype=object)
    assert not set(series[own.positions_M]) & set(series[others.positions_M])
    assert len(own.positions_M) + len(others.positions_M) == len(tiny_store)
    assert (own.trained_on_M == 0).all()


def test_elsewhere_all_backbones_and_all_passes_go_through_the_head(
    both: Path,
    other_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first two series are longer than a chunk.
    monkeypatch.setattr(probabilities, "CHUNK_SLICES", 6)
    table, folder = predicted(both, tmp_path / "p.csv", other_store, tta="flips")
    # P4 has no labels: nothing was trained on them.
    assert (table["trained_on"] == (table["patient"] != "P4")).all()
    seen = np.arange(29)
    with Store(other_store) as store:
        passes = [
            expected(
                both,
                [read_rows(folder, f"{task}-{number}", 29) for task in (0, 1)],
                store,
                seen,
            )
            for number in (0, 1)
        ]
    for columns, logits in (
        (table.columns[8:14], [slices for slices, _ in passes]),
        (SERIES_PROB_COLUMNS, [series for _, series in passes]),
    ):
        mean = np.mean([sigmoid(each) for each in logits], axis=0)
        # Whole series in batches of other lengths.
        np.testing.assert_allclose(table[list(columns)], mean, atol=1e-6)
    assert np.abs(passes[0][0] - passes[1][0]).max() > 1e-3


def test_patients_of_the_head_count_as_trained_on(
    both: Path, other_store: Path
) -> None:
    run = open_series_run(both)
    with Store(other_store) as store:
        of_p4 = np.flatnonzero(store.table["patient"] == "P4")
        patients = patients_of_slices(store, of_p4)
        for head_patients, expected in ((run.head_patients, 0), (patients, 1)):
            changed = replace(run, head_patients=head_patients)
            (coverage,) = cover(changed, store, all_slices=False, only=None, limit=None)
            assert (coverage.trained_on_M[of_p4] == expected).all()


def test_a_limit_chooses_slices_after_whole_series_were_read(
    both: Path, other_store: Path, tmp_path: Path
) -> None:
    only = tmp_path / "only.csv"
    only.write_text("series\nR1\nR3\n")
    whole = predict_runs([both], device=CPU, store_path=other_store)
    config = PredictConfig(limit=4, only=only)
    some = predict_runs([both], device=CPU, store_path=other_store, config=config)
    assert some["series"].tolist() == ["R1", "R1", "R3", "R3"]
    there = whole[whole["slice_id"].isin(some["slice_id"])]
    # The batches of the networks are others.
    np.testing.assert_allclose(probs_NK(some), probs_NK(there), atol=1e-3)


def test_backbones_compute_once_for_all_runs_that_have_them(
    both: Path,
    folds: list[Path],
    other_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = series_run(tmp_path_factory.mktemp("one"), folds[:1], 0)
    shown: list[str] = []
    write = Journal.write

    def note(journal: Journal, part: Part, rows_R: Rows) -> None:
        shown.extend([f"task {part.task}"] * len(rows_R))
        write(journal, part, rows_R)

    monkeypatch.setattr(Journal, "write", note)
    runs = [both, one, folds[0]]
    table = predict_runs(runs, device=CPU, store_path=other_store)
    assert {name: shown.count(name) for name in shown} == {"task 0": 29, "task 1": 29}
    monkeypatch.undo()
    alone = [predict_runs([run], device=CPU, store_path=other_store) for run in runs]
    mean = np.mean([probs_NK(each) for each in alone], axis=0)
    np.testing.assert_allclose(probs_NK(table), mean, atol=1e-5)
    # The plain run has no probabilities of series.
    mean = np.mean([each[list(SERIES_PROB_COLUMNS)] for each in alone[:2]], axis=0)
    np.testing.assert_allclose(table[list(SERIES_PROB_COLUMNS)], mean, atol=1e-5)
    assert tuple(table.columns) == (
        *(*COLUMNS, *SERIES_PROB_COLUMNS),
        *(*STD_COLUMNS, *ENTROPY_COLUMNS),
    )


def test_series_have_no_probability_where_only_slices_were_predicted(
    both: Path, folds: list[Path]
) -> None:
    table = predict_runs([both, folds[0]], device=CPU)
    assert set(table["run"]) == {"fold0", "series"}
    assert tuple(table.columns) == COLUMNS


def test_dicom_is_predicted_by_a_series_run(
    both: Path, source: Path, tmp_path: Path
) -> None:
    found = predict_dicom(
        [both],
        [source],
        device=CPU,
        config=PredictConfig(),
        workers=1,
        rejected_file=tmp_path / "rejected.csv",
    )
    assert len(found.table) == 23
    series = found.table.groupby(["study", "series"])  # one has slices of two studies
    per_series = series[list(SERIES_PROB_COLUMNS)].nunique()
    assert (per_series == 1).all(axis=None)
