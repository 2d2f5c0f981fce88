"""Damaged files of a run are refused in one line, or read as what was written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ichfast.errors import CheckpointError, IchfastError, RecipeError
from ichfast.runs.record import RECORD, read_record
from ichfast.system.checksums import checksum_path
from ichfast.training.checkpoint import LAST, load_checkpoint, load_last
from ichfast.training.history import METRICS, read_history
from tests.mutations import mutations
from tests.runs.trainedruns import write_run
from tests.training.tiny_trainer import fit, make_trainer

MIN_REFUSED = 200
"""Lower limit of the mutations of a file that are refused. The others change bytes
without a meaning, such as a file's name beside its checksum."""


@pytest.fixture(scope="module")
def run_dir(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny_store_path)


def count_refused(
    file: Path,
    read: Callable[[], Any],
    same: Callable[[Any, Any], bool],
    error_type: type[IchfastError],
) -> int:
    """Read 300 mutations of a file; none may be read as something else."""
    content, whole = file.read_bytes(), read()
    num_refused = 0
    for mutated in mutations(content, seed=5):
        file.write_bytes(mutated)
        try:
            found = read()
        except error_type as error:
            message = str(error)
            assert "\n" not in message
            assert file.name.removesuffix(".sha256") in message
            num_refused += 1
            continue
        assert same(found, whole), mutated[:2000]
    file.write_bytes(content)
    return num_refused


def test_a_damaged_record(run_dir: Path) -> None:
    refused = count_refused(
        run_dir / RECORD,
        lambda: read_record(run_dir),
        lambda found, whole: found == whole,
        RecipeError,
    )
    assert refused == 300


@pytest.mark.parametrize("name", [METRICS, checksum_path(Path(METRICS)).name])
def test_a_damaged_history_or_its_checksum(run_dir: Path, name: str) -> None:
    refused = count_refused(
        run_dir / name,
        lambda: read_history(run_dir),
        lambda found, whole: found.equals(whole),
        CheckpointError,
    )
    assert refused >= MIN_REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("reads", ["load_last", "load_checkpoint"])
def test_a_damaged_checkpoint(tmp_path: Path, reads: str) -> None:
    trainer = make_trainer(tmp_path / "run")
    fit(trainer)
    for path in (tmp_path / "run").iterdir():
        if path.name != LAST:
            path.unlink()
    path = tmp_path / "run" / LAST
    read = {
        "load_last": lambda: load_last(path.parent),
        "load_checkpoint": lambda: load_checkpoint(path),
    }
    refused = count_refused(path, read[reads], saves_the_same, CheckpointError)
    assert refused >= MIN_REFUSED


def saves_the_same(found: Any, whole: Any) -> bool:
    """Whether two checkpoints are equal to the bit."""
    return _saved(found) == _saved(whole)


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
