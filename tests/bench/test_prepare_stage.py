"""The stage prepare at toy size: its limits, its converters, other syntaxes."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pytest

from bench.harness.measure import BenchError
from bench.harness.workload import Workload
from bench.inputs.syntaxes import encode_in_syntaxes
from bench.limits.barest import BarestCopiers, copy_slices
from bench.stages.prepare import copy_folders
from ichfast.dicom.slices import read_slices
from tests.bench.stage_checks import run_toy_stage

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_stage_runs_and_is_compared_with_copies(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stage empties the machine's write cache before each turn. That can take
    # seconds where other programs write.
    monkeypatch.setattr("bench.stages.prepare.os.sync", lambda: None)
    records = run_toy_stage("prepare", toy)
    limits = {record.name for record in records if record.role == "limit"}
    assert {"cp -r, sync", "barest copy, fsync"} <= limits


@pytest.mark.slow
def test_the_barest_copy_has_the_pixels_that_prepare_stores(
    toy: Workload, tmp_path: Path
) -> None:
    files = sorted((toy.heads_dir / "dicom").rglob("*.dcm"))
    slices = [next(read_slices(file.read_bytes())) for file in files]
    # The barest copy is right for one intercept only.
    known = [k for k, one in enumerate(slices) if one.rescale_intercept == -1024]
    assert len(known) > len(files) / 2
    with BarestCopiers(2) as copiers:
        asked = [files[k] for k in known]
        out_dir = tmp_path / "copy"
        num_pixels = toy.file_size**2
        count = copiers.copy(asked, out_dir, num_pixels=num_pixels, flush=True)
    assert count == len(known)
    for process in range(2):
        stored = np.stack([slices[k].stored_HW for k in known[process::2]])
        assert (out_dir / str(process)).read_bytes() == stored.tobytes()
    assert copy_slices(asked, tmp_path / "all", num_pixels, flush=False) == int(
        google_crc32c.value(slices[known[-1]].stored_HW.tobytes())
    )


@pytest.mark.slow
def test_peers_of_prepare_convert_every_file_they_are_given(
    toy: Workload, tmp_path: Path
) -> None:
    converters = import_module("bench.peers.converters").CONVERTERS
    file = min((toy.heads_dir / "dicom").rglob("*.dcm"))
    for name in ("pydicom-npy", "png-converter"):
        converters[name](file, tmp_path)
    with toy.open_store() as store:
        position = store.table["slice_id"].tolist().index(file.stem)
        stored_HW = store.slice_HW(position)
    hu_HW = np.load(tmp_path / f"{file.stem}.npy")
    np.testing.assert_array_equal(hu_HW.clip(-1024), stored_HW.astype(int) - 1024)
    assert (tmp_path / f"{file.stem}.png").stat().st_size > 0


def test_the_error_of_a_failed_copy_is_reported_for_each_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "there").mkdir()
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    with pytest.raises(BenchError, match=r"failed \(cp: .*missing.*\); make room"):
        copy_folders([tmp_path / "missing", tmp_path / "there"], out_dir, 2)
    assert (out_dir / "there").is_dir()


def test_copies_that_take_too_long_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cp = tmp_path / "cp"
    cp.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    cp.chmod(0o700)
    started: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def start_and_note(*arguments: Any, **options: Any) -> Any:
        started.append(start(*arguments, **options))
        return started[-1]

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("bench.stages.prepare.subprocess.Popen", start_and_note)
    monkeypatch.setattr("bench.stages.prepare.COPY_TIMEOUT_S", 0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        copy_folders([tmp_path / "a", tmp_path / "b"], tmp_path, 2)
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2


def test_a_syntax_is_left_out_where_its_package_is_missing_and_for_nothing_else(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = min((toy.heads_dir / "dicom").rglob("*.dcm")).read_bytes()
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(
        "bench.inputs.syntaxes.get_encoder",
        lambda _: SimpleNamespace(available_plugins=()),
    )
    encoded, left_out = encode_in_syntaxes([content])
    assert all(name.endswith(("endian", "deflated")) for name in encoded)
    assert "ichfast[bench]" in left_out["HTJ2K"]
    assert "ichfast[decoders]" in left_out["JPEG-LS"]

    def fail(*_: Any) -> bytes:
        raise RuntimeError("the encoder's own")

    codecs = SimpleNamespace(ljpeg_encode=fail, htj2k_encode=fail)
    monkeypatch.setitem(sys.modules, "imagecodecs", codecs)
    with pytest.raises(RuntimeError, match="the encoder's own"):
        encode_in_syntaxes([content])


def test_files_written_in_other_syntaxes_hold_the_same_slice(toy: Workload) -> None:
    content = min((toy.heads_dir / "dicom").rglob("*.dcm")).read_bytes()
    (expected,) = read_slices(content)
    encoded, left_out = encode_in_syntaxes([content])
    assert encoded.keys() >= {"deflated", "RLE"}
    assert not encoded.keys() & left_out.keys()
    assert len(encoded) + len(left_out) == 8
    syntaxes = set()
    for contents in encoded.values():
        (found,) = read_slices(contents[0])
        np.testing.assert_array_equal(found.stored_HW, expected.stored_HW)
        syntaxes.add(found.transfer_syntax_uid)
    assert len(syntaxes) == len(encoded)
