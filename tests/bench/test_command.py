"""`bench/throughput.py`: its options, messages, output and files."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bench.harness.measure import Meter
from bench.harness.records import read_records
from bench.harness.session import (
    SIZED_STAGES,
    STAGE_S,
    guess_time_left,
)
from bench.harness.workload import Workload
from bench.peers import PEERS, parse_peers, reason_to_skip
from bench.stages import STAGES
from bench.throughput import interrupt_once
from bench.throughput import main as throughput_main
from ichfast.models.config import ARCHS
from tests.bench.conftest import NotedStage
from tests.bench.made_up_records import record_of

pytestmark = pytest.mark.slow  # runs the whole benchmark at toy size

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reed"], "unknown stage 'reed'; choose from prepare, read"),
        (["--stage", "reed"], "unknown stage 'reed'; choose from prepare, read"),
        (["--peers", "tensorflow"], "unknown peer 'tensorflow'; --peers takes all"),
        (["--peers", "ffcv,"], "unknown peer ''"),
        (["--arch", "vgg"], "vgg"),
        (["read", "--store", "nowhere"], "nowhere is not a slice store"),
        (["read", "--store", "TINY", "--batch-size", "16"], "is too small: it has 23"),
        (["read", "--json", "nowhere/out.json"], "nowhere is not a folder"),
    ],
)
def test_bad_input_gives_one_line_with_a_remedy(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    tiny_store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    typed = [str(tiny_store_path) if word == "TINY" else word for word in arguments]
    done = CliRunner().invoke(throughput_main, typed)
    assert done.exit_code in (1, 2)
    error = [line for line in done.stderr.splitlines() if "device: cpu" not in line]
    assert len(error) == 1, done.stderr
    assert error[0].startswith("Error: ")
    assert message in error[0]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ("shutil.disk_usage", "GiB left, the benchmark needs "),
        (
            "bench.harness.workload.available_memory",
            "GiB of memory are free, making the",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_refused_before_it_is_made(
    resource: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    free = {"shutil.disk_usage": lambda _: SimpleNamespace(free=1 << 20)}
    monkeypatch.setattr(resource, free.get(resource, lambda: 1 << 20))
    monkeypatch.setattr("bench.harness.workload.synthesize", None)
    done = CliRunner().invoke(throughput_main, ["prepare", "--device", "cpu"])
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert not list(tmp_path.rglob("*.dcm"))


def test_make_bench_measures_every_stage_in_its_short_form(
    noted_stages: list[NotedStage],
) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "\t$(BIN)/python bench/throughput.py\n" in makefile
    done = CliRunner().invoke(throughput_main, ["--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    assert [noted.stage for noted in noted_stages] == list(STAGES)
    (workload,) = noted_stages[0].workloads
    assert noted_stages[0].meter.repeats == 6
    assert (workload.size, workload.archs) == (224, ("efficientnet-b0",))
    assert all(f"my {stage}" in done.stdout for stage in STAGES)


def test_full_takes_all_networks_both_sizes_and_more_turns(
    noted_stages: list[NotedStage], tmp_path: Path
) -> None:
    arguments = ["--stage", "train", "--full", "--device", "cpu"]
    arguments += [
        "--out",
        str(tmp_path / "results"),
        "--json",
        str(tmp_path / "out.json"),
    ]
    done = CliRunner().invoke(throughput_main, arguments)
    assert done.exit_code == 0, done.stderr
    (noted,) = noted_stages
    assert (noted.stage, noted.meter.repeats) == ("train", 6)
    assert [workload.size for workload in noted.workloads] == [224, 512]
    workload = noted.workloads[0]
    assert workload.ranks == (1, 2, 4, 8)
    assert workload.archs == tuple(ARCHS)
    assert workload.memory_files == (1_000, 100_000)
    (recorded,) = (tmp_path / "results").glob("*.jsonl")
    assert [record.name for record in read_records(recorded)] == ["my train"]
    assert (tmp_path / "results" / "throughput.png").is_file()
    document = json.loads((tmp_path / "out.json").read_text())
    assert [record["name"] for record in document["all"]] == ["my train"]


def test_an_interrupted_benchmark_keeps_its_records_and_names_their_file(
    noted_stages: list[NotedStage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(stage: str, _: list[Workload], meter: Meter) -> None:
        meter.on_record(record_of(stage, "hot", f"my {stage}", [1.0, 2.0]))
        if stage == "loader":
            raise KeyboardInterrupt

    monkeypatch.setattr("bench.harness.session.run_stage", run)
    done = CliRunner().invoke(throughput_main, ["--device", "cpu"])
    assert done.exit_code == 1
    (kept,) = tmp_path.rglob("*.jsonl")
    assert [record.stage for record in read_records(kept)] == [
        *("prepare", "read", "loader")
    ]
    assert f"interrupted; 3 records are in {kept}" in done.stderr
    assert noted_stages == []


def test_a_second_signal_does_not_cut_the_end_of_a_run_short() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt_once(signal.SIGTERM, None)
        os.kill(os.getpid(), signal.SIGTERM)  # is ignored
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_time_left_follows_the_pace_of_the_stages_before(toy: Workload) -> None:
    stages = ("prepare", "read", "scale")
    expected_s = [STAGE_S[stage] for stage in stages]
    assert guess_time_left(stages, 0, [toy], 0.0) == sum(expected_s)
    twice_as_slow = guess_time_left(stages, 2, [toy], 2 * sum(expected_s[:2]))
    assert twice_as_slow == 2 * expected_s[2]
    assert guess_time_left(("train",), 0, [toy, toy], 0.0) == 2 * STAGE_S["train"]


def test_peers_are_chosen_by_name() -> None:
    assert parse_peers("all") == tuple(PEERS)
    assert parse_peers("none") == ()
    assert parse_peers("torchvision, ffcv") == ("torchvision", "ffcv")
    unheard_of = replace(PEERS["ffcv"], packages=("torch", "no_such_package"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEERS, "ffcv", unheard_of)
        assert reason_to_skip("ffcv") == (
            "no_such_package is not installed; it has no wheel; bench/README.md shows "
            "how to build it"
        )
    assert not reason_to_skip("grid-sample")


def test_peers_without_a_name_are_all_of_them(noted_stages: list[NotedStage]) -> None:
    for typed in (["loader"], ["loader", "--peers"], ["--peers", "all", "loader"]):
        done = CliRunner().invoke(throughput_main, [*typed, "--device", "cpu"])
        assert done.exit_code == 0, done.stderr
    assert [noted.stage for noted in noted_stages] == ["loader"] * 3
    found = [noted.workloads[0].peers for noted in noted_stages]
    assert found == [tuple(PEERS)] * 3


def test_only_the_stages_with_a_model_input_repeat_for_each_size() -> None:
    assert set(SIZED_STAGES) < set(STAGES)
