"""What the stage read is compared with: bare threads, and fio told to do the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.harness.measure import BenchError, Clocked, Contender, Meter
from bench.harness.table import format_table
from bench.harness.workload import Workload
from bench.limits.disk import Disk
from bench.limits.fio import Fio, parse_reads
from bench.stages.read import measure
from ichfast.loading.prefetch import num_readers
from ichfast.store.shards import NPY_HEADER_BYTES
from tests.bench.stage_checks import run_toy_stage

SLICE_BYTES = 8192
"""Bytes of a slice in the shards made here: two pages."""

RECORDED = """fio: this is a note, which some versions print here
{
  "fio version" : "fio-3.33",
  "jobs" : [
    {
      "jobname" : "slices",
      "groupid" : 0,
      "error" : 0,
      "elapsed" : 1,
      "read" : {
        "io_bytes" : 16777216,
        "io_kbytes" : 16384,
        "bw_bytes" : 441505684,
        "bw" : 431157,
        "runtime" : 38,
        "total_ios" : 32
      },
      "job_runtime" : 86
    }
  ],
  "disk_util" : []
}
"""
"""What fio 3.33 printed of 4 threads that read 32 slices of 512x512, shortened."""


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two shards of 5 and 7 slices, each slice full of its own number."""
    paths = [tmp_path / "00000.npy", tmp_path / "00001.npy"]
    for path, numbers in zip(paths, (range(5), range(5, 12)), strict=True):
        slices = b"".join(bytes([number]) * SLICE_BYTES for number in numbers)
        path.write_bytes(bytes(NPY_HEADER_BYTES) + slices)
    return paths


def count_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def make_fio(level_dir: Path, **settings: object) -> Fio:
    return Fio(
        **{
            "level_dir": level_dir,
            "shards": ("00000.npy", "00001.npy"),
            "slice_bytes": SLICE_BYTES,
            "num_slices": 10,
            "threads": 4,
            "is_direct": False,
        }
        | settings  # type: ignore[arg-type]
    )


@pytest.fixture
def install_fio(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Leaves PATH without fio; puts a shell script in its place when called."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", str(folder))

    def install(script: str) -> None:
        (folder / "fio").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "fio").chmod(0o755)

    return install


@pytest.mark.slow
def test_the_stage_runs_and_is_compared_with_its_limits(toy: Workload) -> None:
    assert {record.case for record in run_toy_stage("read", toy)} == {"hot", "cold"}


def test_fio_is_told_to_read_as_the_reader_does_and_to_end(tmp_path: Path) -> None:
    assert make_fio(tmp_path, is_direct=True).command() == [
        "fio",
        "--name=slices",
        "--filename=00000.npy:00001.npy",
        "--readonly",
        "--rw=randread",
        "--bs=8192",
        "--offset=4096",
        "--io_size=24576",  # 10 slices in 4 threads: 3 each
        "--direct=1",
        "--ioengine=psync",
        "--thread",
        "--numjobs=4",
        "--group_reporting",
        "--runtime=20",
        "--output-format=json",
    ]


def test_fio_gets_no_longer_list_of_files_than_it_takes(tmp_path: Path) -> None:
    names = tuple(f"{number:05d}.npy" for number in range(1000))
    option = make_fio(tmp_path, shards=names).command()[2]
    assert option.endswith("npy")
    assert 1000 < len(option) < 4096


def test_slices_and_seconds_are_those_that_fio_counted() -> None:
    assert parse_reads(RECORDED, 2 * 512 * 512) == Clocked(32, 0.038)
    at_once = RECORDED.replace('"runtime" : 38', '"runtime" : 0')
    assert parse_reads(at_once, 2 * 512 * 512) == Clocked(32, 0.001)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "printed no figures"),
        ("fio: hello", "printed no figures"),
        ('{"jobs": []}', "printed no figures"),
        ('{"jobs": [{"read": {}}]}', "printed no figures"),
        ('{"jobs": [{"read": {"io_bytes": 0, "runtime": 0}}]}', "read 0 bytes"),
    ],
)
def test_output_without_reads_is_refused(output: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        parse_reads(output, SLICE_BYTES)


def test_a_missing_failing_or_hanging_fio_is_an_error(
    tmp_path: Path, install_fio: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BenchError, match=r"no fio on PATH .*; install it \(apt-get"):
        make_fio(tmp_path).read()
    install_fio("echo no such option >&2; exit 3")
    with pytest.raises(BenchError, match=r"fio failed: no such option \(status 3\)"):
        make_fio(tmp_path).read()
    monkeypatch.setattr("bench.limits.fio.TIMEOUT_S", 0.2)
    install_fio("while :; do :; done")
    with pytest.raises(BenchError, match=r"fio did not end in 0\.2 s"):
        make_fio(tmp_path).read()


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio on PATH")
def test_fio_reads_as_many_slices_as_asked_for_and_changes_nothing(
    shards: list[Path],
) -> None:
    before = [path.read_bytes() for path in shards]
    done = make_fio(shards[0].parent).read()
    assert done.units == 12  # 10 in 4 threads: 3 each
    assert done.seconds > 0
    assert sorted(shards[0].parent.iterdir()) == shards
    assert [path.read_bytes() for path in shards] == before


@pytest.mark.slow
def test_a_program_may_report_its_own_time() -> None:
    meter = Meter(device="cpu", repeats=2, warmup=1)
    log: list[str] = []

    def run_ours() -> int:
        log.append("ours")
        return 1

    def run_theirs() -> Clocked:
        log.append("theirs")
        return Clocked(len(log), 0.5)

    _, theirs = meter.compare(
        [
            Contender(name="ours", role="ichfast", run=run_ours),
            Contender(name="theirs", role="limit", run=run_theirs),
        ],
        stage="read",
        case="cold",
        unit="slices",
        cache="cold",
        settings={},
    )
    assert log == ["ours", "theirs"] * 3
    assert theirs.values == (8.0, 12.0)


def test_bare_threads_read_the_requested_slices(
    shards: list[Path],
) -> None:
    places = [(1, 6), (0, 0), (1, 0), (0, 4), (0, 2), (1, 3), (0, 1)]
    numbers = [5 * shard + row for shard, row in places]
    with Disk(shards, places, SLICE_BYTES, ring_slices=len(places)) as disk:
        assert disk.read_into_ring() == len(places)
        assert [bytes(buffer) for buffer in disk._ring] == [
            bytes([number]) * SLICE_BYTES for number in numbers
        ]
        assert disk.read_at_random() == len(places)
        assert len(disk._own) == num_readers(past_cache=True)
        assert disk.read_in_sequence() == len(places)


def test_bare_threads_reuse_a_ring_that_is_shorter_than_what_they_read(
    shards: list[Path],
) -> None:
    places = [(0, row) for row in range(5)]
    with Disk(shards, places, SLICE_BYTES, ring_slices=2) as disk:
        assert disk.read_into_ring() == 5
        assert {buffer[0] for buffer in disk._ring} <= {0, 1, 2, 3, 4}
        assert disk._ring[1][0] % 2 == 1


@pytest.fixture
def workload(tiny_store_path: Path, tmp_path: Path) -> Workload:
    return Workload(
        cache_dir=tmp_path, scratch_dir=tmp_path, store=tiny_store_path, batch_size=4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "reason"),
    [("", "no fio on PATH"), (f"cat <<'END'\n{RECORDED}END", "")],
)
def test_the_cold_case_has_every_limit_or_a_reason_for_a_missing_one(
    script: str,
    reason: str,
    workload: Workload,
    install_fio: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.harness.pagecache._is_cached", lambda *_: False)
    if script:
        install_fio(f"PATH=/bin:/usr/bin\n{script}")
    records = measure(workload, Meter(device="cpu", repeats=2, warmup=0))
    cold = {record.name: record for record in records if record.case == "cold"}
    assert list(cold) == [
        *("ichfast", "random read", "random read, ring", "sequential read", "fio")
    ]
    assert cold["fio"].role == "limit"
    assert cold["fio"].reason.startswith(reason)
    assert (cold["fio"].estimate is None) == bool(reason)
    assert cold["random read, ring"].settings["ring_slices"] == 5 * 4
    if not reason:
        rate = 16_777_216 // cold["fio"].settings["unit_bytes"] / 0.038
        assert cold["fio"].values == (rate, rate)
        assert cold["fio"].settings["clocked_by"] == "fio"
    assert ("not measured: no fio on PATH" in format_table(records)) == bool(reason)


def test_bare_threads_close_their_files(shards: list[Path]) -> None:
    before = count_open_files()
    with Disk(shards, [(0, 0)], SLICE_BYTES, ring_slices=1) as disk:
        disk.read_at_random()
        assert count_open_files() > before
    assert count_open_files() == before
