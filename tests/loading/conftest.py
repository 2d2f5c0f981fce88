"""What several tests share: compiled kernels, and both kinds of graph."""

from __future__ import annotations

import pytest

from tests.loading.cuda_sources import CppKernel, find_kernels


@pytest.fixture(scope="session")
def unpack_kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CppKernel]:
    """The kernels that unpack, as C++."""
    if CppKernel.compiler is None:
        pytest.skip("needs the C++ compiler g++")
    sources = find_kernels()
    folder = tmp_path_factory.mktemp("kernels")
    return {
        name: CppKernel(name, sources[name], folder)
        for name in ("unpack_rows", "sum_columns")
    }


@pytest.fixture(params=[False, True], ids=["resample", "whole"])
def either_graph(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use the graph of a CPU, with NumPy before and after it, or that of a GPU."""
    monkeypatch.setattr(
        "ichfast.loading.loader.graph_is_whole", lambda _: request.param
    )
