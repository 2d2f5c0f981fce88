"""`features`: rows that the head turns into the backbone's logits, on any rank."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ichfast.errors import PredictionError
from ichfast.evaluation.logits import logit
from ichfast.evaluation.predictions import probs_NK
from ichfast.models.config import ARCHS
from ichfast.predict.ensemble import predict_runs
from ichfast.predict.extract import extract_features
from ichfast.predict.journal import Journal, Part, Rows, journal_folder
from ichfast.runs.trained import open_run
from ichfast.series.features import FEATURES, HEADER, Features
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import BEST, load_checkpoint, save_checkpoint
from tests.conftest import add_tiny_arch, contents, write_store
from tests.runs.rank_processes import run_ranks
from tests.runs.trainedruns import write_folds, write_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folds(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    return write_folds(tmp_path_factory.mktemp("folds"), tiny_store_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "tiny"])
def test_features_times_the_heads_weights_are_the_logits(
    arch: str, tiny_store_path: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, arch=arch)
    extract_features([run], tmp_path / "features", device=CPU)
    features = Features.open(tmp_path / "features")
    head = open_run(run).load_model(CPU).get_classifier()  # type: ignore[operator]
    assert isinstance(head, nn.Linear)
    weight_KD, bias_K = (each.detach().numpy() for each in head.parameters())
    features_ND = features.features_ND.astype(np.float64)
    logits_NK = features_ND @ weight_KD.T.astype(np.float64) + bias_K
    # Each feature is off by at most half a step of float16, or of its subnormals.
    off_ND = np.abs(features_ND) * 2.0**-11 + 2.0**-25
    tolerance_NK = off_ND @ np.abs(weight_KD).T + 1e-3
    assert (np.abs(logits_NK - features.logits_NK) <= tolerance_NK).all()
    # Random weights make the features of EfficientNet as small as float16 can hold.
    assert tolerance_NK.max() < np.abs(features.logits_NK).max()
    assert features.header.num_features == head.in_features
    assert (features.run_N == 0).all()


def positions_of(store_path: Path, slice_ids: list[str]) -> list[int]:
    with Store(store_path) as store:
        ids = store.table["slice_id"].tolist()
    return [ids.index(each) for each in slice_ids]


@pytest.mark.slow
def test_runs_of_several_folds_each_compute_the_series_of_their_own(
    folds: list[Path], tiny_store_path: Path, tmp_path: Path
) -> None:
    report = extract_features(folds, tmp_path / "features", device=CPU)
    assert report is not None
    assert (report.slices, report.computed) == (29, 26)
    features = Features.open(tmp_path / "features")
    assert [run.fold for run in features.header.runs] == [0, 1]
    for number, run in enumerate(folds):
        table = predict_runs([run], device=CPU)
        positions = positions_of(tiny_store_path, table["slice_id"].tolist())
        assert np.flatnonzero(features.run_N == number).tolist() == positions
        logits_MK = features.logits_NK[positions]
        np.testing.assert_allclose(logit(probs_NK(table)), logits_MK, atol=1e-4)


def extract_as_rank(ranks: Ranks, runs: list[Path], out: Path) -> None:
    add_tiny_arch()
    extract_features(runs, out, device=CPU, ranks=ranks, batch_size=4)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread_and_seed")
def test_files_are_the_same_from_one_process_from_two_and_after_a_stop(
    folds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, stopped = (tmp_path / name for name in ("one", "two", "stopped"))
    extract_as_rank(Ranks(), folds, one)
    assert run_ranks(2, extract_as_rank, folds, two) == ["", ""]
    write = Journal.write

    def write_or_stop(journal: Journal, part: Part, rows_R: Rows) -> None:
        if part.task == 1:
            raise KeyboardInterrupt
        write(journal, part, rows_R)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            extract_as_rank(Ranks(), folds, stopped)
    assert journal_folder(stopped).is_dir()
    wanted = r"parts of another prediction, with other checkpoints, slices"
    with pytest.raises(PredictionError, match=wanted):
        extract_as_rank(Ranks(), folds[:1], stopped)
    extract_as_rank(Ranks(), folds, stopped)
    assert contents(one) == contents(two) == contents(stopped)
    assert sorted(tmp_path.iterdir()) == [one, stopped, two]


@pytest.mark.slow
def test_finished_features_stay_and_others_are_refused(
    folds: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "features"
    first = extract_features(folds[:1], out, device=CPU)
    header = (out / HEADER).read_bytes()
    journal_folder(out).mkdir()  # as if killed before it was removed
    assert extract_features(folds[:1], out, device=CPU) == first
    assert not journal_folder(out).exists()
    write_store(tmp_path / "other", plan={"listing": "another"})
    wanted = "features of another checkpoint or of another store; name another folder"
    with pytest.raises(PredictionError, match=wanted):
        extract_features(folds[1:], out, device=CPU)
    with pytest.raises(PredictionError, match=wanted):
        extract_features(folds[:1], out, device=CPU, store_path=tmp_path / "other")
    assert (out / HEADER).read_bytes() == header
    assert (out / FEATURES).stat().st_size > 29 * 2 * 256


def test_features_that_float16_cannot_hold_are_refused(
    folds: list[Path], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(folds[0], tmp_path / "damaged"))
    content = load_checkpoint(damaged / BEST)
    content["model"]["bn2.weight"].fill_(1e8)
    save_checkpoint(damaged / BEST, content)
    wanted = r"features beyond 65,504, the limit of float16, for 8 of 8 slices"
    with pytest.raises(PredictionError, match=wanted):
        extract_features([damaged], tmp_path / "features", device=CPU)
    assert not journal_folder(tmp_path / "features").exists()
