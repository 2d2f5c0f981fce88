"""The stage packed at toy size: its cases, its peers, what a GPU would do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from bench.harness.measure import BenchError, Meter
from bench.harness.session import run_stage
from bench.harness.slow_disk import TokenBucket
from bench.harness.table import format_table
from bench.harness.workload import Workload
from bench.peers import PEERS, reason_to_skip
from bench.peers.compressors import make_codec
from bench.scaling.capacity import encodings
from bench.stages.loader import pick_slices
from bench.stages.packed import DISKS, _Comparison
from bench.stages.packed_code import Memory
from bench.stages.packed_gpu import ResidentRecords, measure_on_gpu, read_resident
from ichfast.packed.library import library_paths
from ichfast.prepare.packing import pack_store
from ichfast.store.store import Store
from tests.bench.stage_checks import run_toy_stage

COMPRESSORS = [name for name in PEERS if PEERS[name].stage == "packed"]


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    if not any(path.is_file() for path in library_paths()):
        pytest.skip("needs the C library, built by setup.py with a C compiler")


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    # A case searches all imports for garbage, and a record asks git several times.
    monkeypatch.setattr("gc.collect", lambda: 0)
    monkeypatch.setattr("bench.harness.measure._commit", lambda: "abc")
    monkeypatch.setattr("bench.harness.measure.describe_environment", dict)
    for name, value in (("UNCACHED_BYTES", 2**17), ("CACHED_SLICES", 2)):
        monkeypatch.setattr(f"bench.stages.packed_code.{name}", value)
    monkeypatch.setattr("bench.stages.packed.KEPT_TURNS", 1)


@pytest.fixture(scope="module")
def stores(
    toy: Workload, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, Store]]:
    """The packed and the raw store of the toy's slices."""
    path = tmp_path_factory.mktemp("stores") / "packed"
    with toy.open_store() as raw:
        pack_store(raw.path, path, workers=1)
        with Store(path) as packed:
            yield packed, raw


@pytest.mark.slow
def test_the_stage_runs_and_leaves_nothing_behind(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.packed._measure_prepare", lambda *_: [])
    monkeypatch.delitem(DISKS, "2 GB/s")
    usual = os.preadv
    records = run_toy_stage("packed", replace(toy, peers=("blosc2",)))
    assert os.preadv is usual
    assert not list(toy.cache_dir.glob("packed.*"))
    for level in (512, 256):
        cases = {each.case for each in records if each.settings.get("level") == level}
        assert {f"level {level}, bytes", f"--cache host, level {level}"} <= cases
        for disk in DISKS:
            assert f"loader, level {level} to {toy.size}, {disk}" in cases
            assert f"reader, level {level}, {disk}" in cases
    assert all(each.total_gb for each in encodings(records))
    without_gpu = {each.case for each in records if each.reason == "no GPU is used"}
    assert len(without_gpu) == 4
    assert "aim: 85% of it or more" in format_table(records)


@pytest.mark.slow
def test_prepare_is_compared_with_prepare_that_packs(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.prepare.os.sync", lambda: None)
    monkeypatch.setattr("bench.stages.packed.packed_by", lambda: "AVX2")
    for name in ("measure_code", "_packed_copy"):
        monkeypatch.setattr(f"bench.stages.packed.{name}", lambda *_: [])
    monkeypatch.setattr("bench.stages.packed.MAX_STORE_BYTES", 0)
    meter = Meter(device="cpu", repeats=1, warmup=0)
    too_large, packed, raw = run_stage("packed", [toy], meter)
    assert too_large.reason == "the store takes more than 0 GiB"
    assert packed.name == "ichfast prepare --packed"
    assert (raw.name, raw.role) == ("ichfast prepare", "limit")
    assert raw.ratio is not None


def test_a_slow_disk_begins_with_the_turn_and_not_with_its_preparation(
    stores: tuple[Store, Store], toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def noting(event: str) -> int:
        log.append(event)
        return len(log)

    monkeypatch.setattr(TokenBucket, "begin", lambda _: noting("begin"))
    clock = partial(noting, "clock")
    meter = Meter(device="cpu", repeats=1, warmup=0, clock=clock)
    compared = _Comparison(*stores, 256, toy, meter)
    compared._compare("reader", "0.5 GB/s", [partial(noting, "run")] * 2, {})
    assert log == ["clock", "begin", "run", "clock"] * 2


def test_without_the_library_nothing_is_measured(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.packed.packed_by", lambda: "NumPy")
    (record,) = run_stage("packed", [toy], Meter(device="cpu", repeats=1))
    assert record.reason == "the C library is missing"


def test_a_store_that_is_packed_already_is_refused(
    stores: tuple[Store, Store], toy: Workload
) -> None:
    with pytest.raises(BenchError, match=r"is packed; .* `ichfast unpack "):
        replace(toy, store=stores[0].path).open_store()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_gives_back_the_slice(
    name: str, stores: tuple[Store, Store]
) -> None:
    if reason := reason_to_skip(name):
        pytest.skip(f"{name}: {reason}")
    stored_HW = stores[1].slice_HW(0)
    codec = make_codec(name)
    packed = codec.pack(stored_HW)
    assert len(packed) < stored_HW.nbytes
    out_HW = np.zeros_like(stored_HW)
    codec.unpack(packed, out_HW)
    np.testing.assert_array_equal(out_HW, stored_HW)


@pytest.mark.parametrize("make", [Memory.cached, Memory.uncached])
def test_peers_do_a_share_of_the_work(
    make: Callable[[Store, int], Memory], stores: tuple[Store, Store]
) -> None:
    memory = make(stores[1], 512)
    seen: list[int] = []
    whole = memory.work(seen.append)
    assert whole == len(seen) == len(memory.stored_NHW) * memory.times
    assert memory.part().work(seen.append) * 8 == whole
    assert memory.copy() == whole
    np.testing.assert_array_equal(memory.out_HW(1), memory.stored_NHW[1])


def test_a_gpu_would_unpack_the_slices_of_the_raw_store(
    stores: tuple[Store, Store],
) -> None:
    packed, raw = stores
    for level in raw.levels:
        picked_N = pick_slices(raw, 5)[::-1]
        records = ResidentRecords(packed, level, picked_N, "cpu")
        slices_NHW = read_resident(raw, level, picked_N, "cpu")
        rows_B = slices_NHW.new_tensor([3, 0, 3, 4]).long()
        assert records.unpack(rows_B).equal(slices_NHW[rows_B])


@pytest.mark.slow
def test_kernels_and_loader_are_compared_as_on_a_gpu(
    stores: tuple[Store, Store], toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, raw = stores
    meter = Meter(device="cpu", repeats=1, warmup=0)
    left_out = measure_on_gpu(packed, raw, 256, toy, meter)
    assert [each.reason for each in left_out] == ["no GPU is used"] * 2
    monkeypatch.setattr("bench.stages.packed_gpu._reason_to_skip", lambda _: "")
    monkeypatch.setattr("bench.stages.packed_gpu.MAX_SLICES", 12)
    records = measure_on_gpu(packed, raw, 256, toy, meter)
    assert [(each.case, each.name) for each in records] == [
        ("on the GPU, level 256", "ichfast"),
        ("on the GPU, level 256", "gathering raw slices"),
        (f"--cache device, level 256 to {toy.size}", "ichfast"),
        (f"--cache device, level 256 to {toy.size}", "raw store"),
    ]
    assert {each.settings["slices"] for each in records} == {12}
