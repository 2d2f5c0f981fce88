"""A workload of toy size, made once for all tests of the benchmark."""

from __future__ import annotations

import pytest

from bench.harness.workload import Workload
from bench.peers import PEERS


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """48 synthetic slices of 64 pixels, made when first asked for."""
    return Workload(
        cache_dir=tmp_path_factory.mktemp("cache"),
        scratch_dir=tmp_path_factory.mktemp("scratch"),
        num_files=48,
        file_size=64,
        size=32,
        batch_size=4,
        train_batch_size=4,
        peers=tuple(name for name in PEERS if PEERS[name].stage != "prepare"),
        num_loaded=16,
        num_steps=1,
        memory_files=(11,),
        store_slices=(7, 1100),
        opened_slices=1500,
    )
