"""A machine is examined in a process that may hang or end."""

from __future__ import annotations

import getpass
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ichfast.doctor.machine import STAGES, STOPPED, Machine, examine_machine, run_stages
from ichfast.training.checkpoint import BEST

REPORT_ONE = 'print(\'[{"apex": "other"}, ""]\', flush=True)\n'


def stages_of(script: str) -> list[tuple[str, dict[str, object], str]]:
    return list(run_stages([sys.executable, "-c", script], timeout_s=5.0))


@pytest.mark.slow
def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = (
        f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid()))\n"
        f"{REPORT_ONE}time.sleep(20)"
    )
    stages = run_stages([sys.executable, "-c", script], timeout_s=2.0)
    assert list(stages) == [
        ("decoders", {"apex": "other"}, ""),
        (STOPPED, {}, "torch gives no answer within 2 s"),
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_a_process_that_crashes_is_reported_with_its_stage() -> None:
    script = f"{REPORT_ONE}import os; os.abort()"
    assert stages_of(script)[1:] == [
        (STOPPED, {}, "torch ends the process with status -6")
    ]


def test_a_process_that_reports_everything_may_hang_afterwards() -> None:
    script = REPORT_ONE * len(STAGES) + "import time; time.sleep(20)"
    assert [stage for stage, _, _ in stages_of(script)] == list(STAGES)


@pytest.fixture(scope="module")
def here(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This machine, with a store and a trained model."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("older", "newer"):
        (folder / "runs" / name).mkdir(parents=True)
    (folder / "runs" / "newer" / BEST).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        return examine_machine(tiny_store_path)


@pytest.mark.slow
def test_this_machine_passes_the_self_test(here: Machine) -> None:
    assert here.errors == {}
    assert here.tested_on == ("cuda" if torch.cuda.is_available() else "cpu")
    assert here.torch_cuda == torch.version.cuda
    assert len(here.gpus) == torch.cuda.device_count()


@pytest.mark.slow
def test_a_store_and_the_newest_model_are_found(here: Machine) -> None:
    assert here.run == "runs/newer"
    assert here.store is not None
    assert (here.store.slices, here.store.labelled) == (29, 26)
    assert here.store.level_bytes["256"] >= 29 * 256 * 256 * 2
    assert not here.store.is_packed


@pytest.mark.slow
def test_nothing_found_names_the_machine_or_its_user(here: Machine) -> None:
    text = str({**asdict(here), "store_path": ""})
    assert platform.node() not in text or platform.node() in platform.processor()
    assert f"/{getpass.getuser()}/" not in text


@pytest.mark.slow
def test_what_is_no_store_is_an_error_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = examine_machine(tmp_path)
    assert list(found.errors) == ["store"]
    assert "is not a slice store" in found.errors["store"]
    assert found.tested_on is not None
