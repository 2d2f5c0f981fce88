"""A server that runs commands in forked processes, and what they work on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.forked import Server, command_server
from tests.conftest import write_dicom

CPU = ("--device", "cpu")

COMMANDS: dict[str, tuple[str, ...]] = {
    "p.parquet": ("predict", "run", "out/p.parquet", *CPU),
    "p.csv": ("predict", "run", "out/p.csv", *CPU),
    "p.npz": ("predict", "run", "out/p.npz", *CPU),
    "metrics.json": ("evaluate", "out/right.csv", "--bootstrap", "0"),
    "submission.csv": ("submit", "right.csv", "out/submission.csv"),
    "report.html": (
        *("report", "run", "--predictions", "right.csv"),
        *("--out", "out/report.html", *CPU),
    ),
    "model.pt2": ("export", "run", "out/model.pt2"),
    "dicom.csv": (
        *("predict", "run", "--dicom", "dicom", "out/dicom.csv", "--keep-ids", *CPU),
    ),
}
"""Commands by the file that they write to the folder ``out``."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a run, its predictions and DICOM files, and who works there."""

    path: Path
    server: Server

    @property
    def out(self) -> Path:
        """Where commands write; empty but for ``right.csv``, which `evaluate` reads."""
        return self.path / "out"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the commands."""
        return self.path / "temporary"


@pytest.fixture(scope="session")
def _place(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    from tests.runs.trainedruns import write_run  # loads torch

    path = tmp_path_factory.mktemp("commands")
    write_run(path / "run", tiny_store_path)
    for name in ("dicom", "temporary", "traces"):
        (path / name).mkdir()
    for k in range(3):
        write_dicom(
            path / "dicom" / f"{k}.dcm", f"ID_{k}", ImagePositionPatient=[0, 0, 5.0 * k]
        )
    with command_server(path / "traces") as server:
        run, right = path / "run", path / "right.csv"
        server.remember("predict", run, right, *CPU)
        page = ("--out", path / "remembered.html")
        server.remember("report", run, "--predictions", right, *page, *CPU)
        server.remember("export", run, path / "remembered.pt2")
        yield Place(path, server)


@pytest.fixture
def place(_place: Place) -> Place:
    """The place, with a new folder ``out``."""
    shutil.rmtree(_place.out, ignore_errors=True)
    _place.out.mkdir()
    shutil.copy(_place.path / "right.csv", _place.out)
    shutil.rmtree(_place.temporary)
    _place.temporary.mkdir()
    return _place
