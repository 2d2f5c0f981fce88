"""The kernels that unpack slices, compiled for these tests."""

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
