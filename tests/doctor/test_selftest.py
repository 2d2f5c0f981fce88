"""The self-test passes on this machine, and fails when the graph is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ichfast.doctor.selftest import run_self_test
from ichfast.errors import LoaderError
from ichfast.loading.cache import HostSlices
from ichfast.loading.dali import as_array

pytestmark = pytest.mark.slow


@pytest.fixture
def _whole_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the graph of a GPU on the CPU."""
    monkeypatch.setattr("ichfast.loading.loader.graph_is_whole", lambda _: True)


def test_the_graph_of_a_cpu_passes() -> None:
    run_self_test("cpu")


@pytest.mark.usefixtures("_whole_graph")
def test_the_graph_of_a_gpu_passes() -> None:
    run_self_test("cpu")


def test_a_shift_by_a_pixel_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ichfast.loading.loader.as_array",
        lambda output: np.roll(as_array(output), 1, axis=1),
    )
    with pytest.raises(LoaderError, match="differ from the reference"):
        run_self_test("cpu")


@pytest.mark.usefixtures("_whole_graph")
def test_a_wrong_number_in_the_graph_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ichfast.loading.graph.LOGIT_EPSILON", 1e-3)
    with pytest.raises(LoaderError, match="differ from the reference"):
        run_self_test("cpu")


def test_a_cache_with_the_wrong_slices_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    read_into = HostSlices._read_into  # on a CPU the cache of the device is the host's
    monkeypatch.setattr(
        HostSlices,
        "_read_into",
        lambda self, position, *rest: read_into(self, position ^ 1, *rest),
    )
    with pytest.raises(LoaderError, match=r"\(cache device\)"):
        run_self_test("cpu")


def test_an_image_that_is_not_a_number_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_self: Any, stored: Any, _numbers: Any) -> Any:
        return np.full((*stored.shape[:3], 3), np.nan, np.float16)

    monkeypatch.setattr("ichfast.loading.shading.Shader.__call__", nothing)
    with pytest.raises(LoaderError, match="differ from the reference"):
        run_self_test("cpu")
