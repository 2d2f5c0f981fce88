"""`ichfast doctor` finds the GPU in order, and its self-test runs there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ichfast.doctor.checks import find_problems
from ichfast.doctor.machine import examine_machine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_machine_with_a_gpu_is_in_order(tmp_path: Path) -> None:
    machine = examine_machine(tmp_path / "none")
    assert [problem for problem in find_problems(machine) if problem.is_error] == []
    assert machine.tested_on == "cuda"
    assert len(machine.gpus) == torch.cuda.device_count()
