"""Runs of two folds, the features of one and of both, and a server of commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.forked import Server, command_server
from tests.runs.trainedruns import write_folds
from tests.series.seriesruns import write_features


@pytest.fixture(scope="session")
def fold_runs(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Runs of folds 0 and 1 of the tiny store. Not to be changed."""
    return write_folds(tmp_path_factory.mktemp("backbones"), tiny_store_path)


@pytest.fixture(scope="session")
def one_features(
    tiny_store_path: Path,
    fold_runs: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Features of every slice by the run of fold 0. Not to be changed."""
    folder = tmp_path_factory.mktemp("features") / "one"
    return write_features(folder, tiny_store_path, fold_runs[:1])


@pytest.fixture(scope="session")
def fold_features(
    tiny_store_path: Path,
    fold_runs: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Out-of-fold features of the runs of both folds. Not to be changed."""
    folder = tmp_path_factory.mktemp("features") / "folds"
    return write_features(folder, tiny_store_path, fold_runs)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with command_server(tmp_path_factory.mktemp("traces")) as server:
        yield server
