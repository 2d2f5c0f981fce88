"""The environment is described without names of machines and users."""

from __future__ import annotations

import getpass
import json
import platform

import pytest
import torch

from ichfast.errors import DeviceError
from ichfast.runs.device import choose_device
from ichfast.system.environment import describe_environment


def test_the_environment_has_versions_and_no_name_of_machine_or_user() -> None:
    found = describe_environment()
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["cores"] >= 1
    text = json.dumps(found)
    assert platform.node() not in text or platform.node() in platform.processor()
    assert f"/{getpass.getuser()}/" not in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to choose")
def test_auto_takes_the_cpu_where_no_gpu_is_and_says_what_it_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_device("auto").type == "cpu"
    assert "torch finds no GPU" in caplog.text
    assert "--limit" in caplog.text
    with pytest.raises(DeviceError, match="torch finds no GPU; use --device cpu"):
        choose_device("cuda")
