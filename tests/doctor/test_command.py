"""`ichfast doctor` prints one screen, a line of JSON, and its status."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result

from ichfast.cli.main import cli
from ichfast.doctor.machine import STOPPED, Machine
from tests.doctor.machines import GIB, LAPTOP, PACKED_STORE, SERVER, STORE

SERVER_SCREEN = """\
examining this machine; this takes some seconds
ichfast      0.1.0, Python 3.12.3
processor    16 cores of AMD EPYC 9654
memory       120.0 of 128.0 GiB available
disk         900.0 GiB free in this folder
driver       580.65.06
GPU 0        NVIDIA H200, 140 GiB, compute capability 9.0
torch        2.14.1, CUDA 13.0, sees the GPU
DALI         2.4.0 (nvidia-dali-cuda130), sees the GPU
CuPy         14.2.0 (cupy-cuda13x), NVRTC 13.0, sees the GPU
apex         NVIDIA's
decoders     for every transfer syntax
packing      by AVX2
compilers    g++, Triton 3.8.0
store        ichfast-store: 752,803 slices, 752,803 labelled; level 512: 368.0
             GiB, level 256: 92.0 GiB
cache host   keeps level 256: 108.0 GiB to spare
cache device keeps level 256: 125.0 GiB to spare
self-test    passed on the GPU in 2.5 s: batches equal the NumPy reference
next         ichfast train --arch xresnet50-attn --size 512
"""


def run_on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr("ichfast.doctor.machine.examine_machine", lambda _: machine)
    return CliRunner().invoke(cli, ["doctor"])


def test_a_machine_in_order_fits_on_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_on(SERVER, monkeypatch)
    assert result.stderr == SERVER_SCREEN
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "device": "cuda",
        "gpus": ["NVIDIA H200"],
        "errors": 0,
        "problems": [],
        "next": "ichfast train --arch xresnet50-attn --size 512",
    }


def test_a_packed_store_is_said_to_be_packed_and_more_of_it_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = run_on(replace(SERVER, store=PACKED_STORE), monkeypatch).stderr
    assert (
        "store        ichfast-store: 752,803 slices, 752,803 labelled; packed: level\n"
        "             512: 95.0 GiB, level 256: 32.0 GiB\n"
        "cache host   keeps level 512 or 256: 108.0 GiB to spare\n"
        "cache device keeps level 512 or 256: 125.0 GiB to spare\n"
    ) in screen


def test_without_the_c_library_the_screen_says_what_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = run_on(replace(SERVER, packed_by="NumPy"), monkeypatch).stderr
    assert "packing      by NumPy, many times slower\n" in screen
    assert "note         the C library is missing" in screen


def test_a_laptop_without_a_gpu_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_on(LAPTOP, monkeypatch)
    assert result.exit_code == 0
    assert "GPU          none; everything runs on the CPU, only slower" in result.stderr
    assert "store        none in ichfast-store" in result.stderr
    assert result.stderr.endswith("stage_2_train.csv\nor           ichfast demo\n")


def test_an_error_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {STOPPED: "DALI gives no answer within 60 s"}
    broken = replace(SERVER, tested_on=None, errors=errors, apex="other", store=None)
    result = run_on(broken, monkeypatch)
    assert result.exit_code == 1
    assert "self-test    did not run\n" in result.stderr
    assert "ichfast demo" not in result.stderr
    assert "ERROR        DALI gives no answer within 60 s; restart" in result.stderr
    assert "note         apex is another project" in result.stderr
    assert result.stderr.endswith(
        "Error: 1 error(s): see the lines that begin with ERROR\n"
    )
    assert json.loads(result.stdout)["errors"] == 1


def test_a_wrong_graph_is_a_failed_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(SERVER, tested_on=None, errors={"self-test": "9 values differ"})
    result = run_on(wrong, monkeypatch)
    assert result.exit_code == 1
    assert "self-test    failed\nERROR        self-test: 9 values" in result.stderr


def test_no_line_is_wider_than_79_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(
        SERVER,
        gpus=(),
        gpu_warning="a reason " * 20,
        store=replace(STORE, spare_bytes=GIB, labelled=0),
        missing_decoders=("a",) * 12,
        errors={"CuPy": "a reason " * 30},
    )
    lines = run_on(machine, monkeypatch).stderr.splitlines()
    assert max(map(len, lines)) <= 79


@pytest.mark.slow
def test_this_machine_can_be_examined() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ichfast", "doctor", "--store", "no-such-store"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "self-test    passed on the" in done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["errors"] == 0
