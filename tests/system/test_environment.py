"""The environment is described without names of machines and users."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest
import torch

from ichfast.errors import DeviceError
from ichfast.runs.device import choose_device
from ichfast.system.environment import (
    describe_environment,
    driver_version,
    outdated_packages,
)


def test_the_environment_has_versions_and_no_name_of_machine_or_user() -> None:
    found = describe_environment()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["cores"] >= 1
    text = json.dumps(found)
    assert platform.node() not in text or platform.node() in platform.processor()
    assert f"/{getpass.getuser()}/" not in text


def test_packages_that_are_too_old_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "torch": "2.5.1",
        "nvidia-dali-cuda130": "1.51.2",
        "cupy-cuda13x": "14.0.0a1",
        "ruff": "0.1",  # only for tests
    }
    monkeypatch.setattr("ichfast.system.environment._version", installed.get)
    requirements = [
        "torch>=2.6",
        "timm>=1.0",
        'nvidia-dali-cuda130>=2.0; extra == "cuda13"',
        'cupy-cuda13x>=13.6; extra == "cuda13"',
        'ruff==0.17.6; extra == "test"',
    ]
    monkeypatch.setattr("ichfast.system.environment.requires", lambda _: requirements)
    assert outdated_packages() == [
        "torch 2.5.1 (not >=2.6)",
        "nvidia-dali-cuda130 1.51.2 (not >=2.0)",
    ]


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "535.104.05"),
        (
            "NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build",
            "580.65.06",
        ),
        ("another text", None),
    ],
)
def test_the_version_of_the_driver_is_read(
    line: str, version: str | None, tmp_path: Path
) -> None:
    assert driver_version(tmp_path) is None
    file = tmp_path / "proc" / "driver" / "nvidia" / "version"
    file.parent.mkdir(parents=True)
    file.write_text(f"NVRM version: {line}\nGCC version:  gcc version 12.3.0\n")
    assert driver_version(tmp_path) == version


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to choose")
def test_auto_takes_the_cpu_where_no_gpu_is_and_says_what_it_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_device("auto").type == "cpu"
    assert "torch finds no GPU" in caplog.text
    assert "--limit" in caplog.text
    with pytest.raises(DeviceError, match="torch finds no GPU; use --device cpu"):
        choose_device("cuda")
