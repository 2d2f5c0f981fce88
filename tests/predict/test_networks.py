"""Parts of networks: the same rows after a kill, and on any number of ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from ichfast.predict import journal as journal_module
from ichfast.predict.ensemble import PredictConfig, kept_predictions, predict_runs
from ichfast.predict.journal import Journal, Part, Rows, journal_folder
from ichfast.system.ranks import Ranks
from tests.conftest import add_tiny_arch
from tests.runs.rank_processes import run_ranks
from tests.runs.trainedruns import write_folds

CPU = torch.device("cpu")
CONFIG = PredictConfig(tta="flips", batch_size=3)


@pytest.fixture(scope="module")
def folds(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    return write_folds(tmp_path_factory.mktemp("folds"), tiny_store_path)


def predict(folds: list[Path], out: Path, ranks: Ranks = Ranks()) -> None:  # noqa: B008
    with kept_predictions(folds, out, device=CPU, ranks=ranks, config=CONFIG) as table:
        if table is not None:
            table.to_parquet(out)


def count_writes(monkeypatch: pytest.MonkeyPatch, *, fail_at: int = 0) -> list[Part]:
    """Note the parts that are written; raise in place of one of them."""
    written: list[Part] = []
    write = Journal.write

    def note(journal: Journal, part: Part, rows_R: Rows) -> None:
        written.append(part)
        if len(written) == fail_at:
            raise KeyboardInterrupt
        write(journal, part, rows_R)

    monkeypatch.setattr(Journal, "write", note)
    return written


@pytest.mark.slow
def test_what_was_computed_is_not_computed_again(
    folds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "p.parquet"
    with monkeypatch.context() as patch:
        stopped = count_writes(patch, fail_at=8)
        with pytest.raises(KeyboardInterrupt):
            predict(folds, out)
    folder = journal_folder(out)
    lost = stopped[2], stopped[4]
    for part in lost:
        (folder / part.file_name).write_bytes(b"")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        written = count_writes(patch)
        predict(folds, out)
    assert tuple(written[:2]) == lost
    assert not set(written[2:]) & set(stopped[:7])
    assert len(written) + 5 == len({*written, *stopped})
    assert not folder.exists()
    expected = predict_runs(folds, device=CPU, config=CONFIG)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_exact=True)
    # Two passes of 26 slices; 17 in the first pass of a run, 3 in its second, 6 lost.
    assert "predict: 14 of 52 slices" in capsys.readouterr().err


def predict_as_rank(
    ranks: Ranks, folds: list[Path], out: Path, dies_at: int = 0
) -> None:
    add_tiny_arch()
    journal_module.STALLED_S = 2.0
    if dies_at and ranks.rank == 1:
        write, count = Journal.write, iter(range(1, 100))

        def write_or_die(journal: Journal, part: Part, rows_R: Rows) -> None:
            if next(count) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            write(journal, part, rows_R)

        Journal.write = write_or_die  # type: ignore[method-assign, assignment]
    predict(folds, out, ranks)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread_and_seed")  # each rank has one thread
def test_two_ranks_write_the_table_of_one_also_when_one_died(
    folds: list[Path], tmp_path: Path
) -> None:
    expected = predict_runs(folds, device=CPU, config=CONFIG)
    out = tmp_path / "p.parquet"
    killed, dead = run_ranks(2, predict_as_rank, folds, out, 2)
    assert dead is None
    assert killed is not None
    assert "PredictionError: rank 0: no part of another rank came to" in killed
    num_done = len(list(journal_folder(out).glob("*.part")))
    assert num_done > 6
    assert run_ranks(2, predict_as_rank, folds, out) == ["", ""]
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_exact=True)
    assert list(tmp_path.iterdir()) == [out]
