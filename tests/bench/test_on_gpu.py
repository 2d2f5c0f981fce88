"""`bench/on_gpu.sh`: its parts, their time limits, and what they have to do in them."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench.harness.measure import Contender, Meter
from bench.harness.records import read_records
from bench.harness.session import FULL_SIZES, run_stage
from bench.harness.workload import Workload
from bench.peers import PEERS, peers_of
from bench.stages.loader import GPU_COPIES, MAX_PEER_SLICES
from bench.stages.packed_gpu import KERNEL_TIMES, MAX_SLICES, measure_on_gpu
from bench.throughput import main as throughput_main
from ichfast.loading.config import CHECKS
from ichfast.models.config import ARCHS
from ichfast.prepare.packing import pack_store
from ichfast.store.store import Store
from tests.bench.conftest import NotedStage

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "on_gpu.sh"

BACKBONES = tuple(ARCHS)
"""Those of the library; tests add another."""

MAX_SHORT_S = 480
"""Limit of the short mode, seconds: eight minutes."""

MIN_RATE = {"train": 1_500, "ichfast": 5_000, "limit": 50_000, "peer": 4_000}
"""Slices per second on a GPU that a part must reach to end in time: of training at 224,
and of a loader's contenders by role. Assumptions, not measured: half of the lowest
estimates or less."""

START_S = {"train": 15, "packed": 25, "loader": 60}
"""Seconds that a part needs before its turns, assumed: for imports; to pack, also for
the packed store and the memory of the GPU; to load, for the synthetic set, the peers'
files and their processes. The set alone took 33 s on two busy cores."""

MACHINE_PACKAGES = {"torch", "torchvision", "PIL", "nvidia.dali", "timm"}
"""Packages of peers that a GPU machine has; the other peers are left out there."""

STUB_TIMEOUT = """#!/bin/sh
# timeout -k GRACE SECONDS COMMAND ...: notes its arguments in a line.
printf '%s\\t' "$@" >>"$NOTED"
echo >>"$NOTED"
shift 3
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the script."""

    limit_s: float
    """After so long its processes are gone."""

    words: tuple[str, ...]
    """The command, without the interpreter."""

    @property
    def is_measurement(self) -> bool:
        return self.words[0] == "bench/throughput.py"


@dataclass(frozen=True, slots=True)
class Dry:
    """The script with another `timeout` and another Python."""

    folder: Path

    def run(self, *arguments: str, python: str = "#!/bin/sh\n") -> tuple[int, str]:
        """Run the script.

        Args:
            arguments: Of the script.
            python: Text of the program that takes the place of Python.

        Returns:
            Status, and what it printed.
        """
        for name, text in (("timeout", STUB_TIMEOUT), ("python", python)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        printed = self.folder / "printed"
        with printed.open("w") as file:
            done = subprocess.run(
                [SCRIPT, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={
                    "PATH": f"{self.folder}:/usr/bin:/bin",
                    "PYTHON": str(self.folder / "python"),
                    "NOTED": str(self.folder / "noted"),
                },
                timeout=60,
            )
        return done.returncode, printed.read_text()

    def parts(self) -> list[Part]:
        """The parts of the last run."""
        lines = (self.folder / "noted").read_text().splitlines()
        parts = []
        for line in lines:
            _, grace, seconds, _, *words = line.removesuffix("\t").split("\t")
            parts.append(Part(float(seconds) + float(grace), tuple(words)))
        return parts


@pytest.fixture
def dry(tmp_path: Path) -> Dry:
    folder = tmp_path / "dry"
    folder.mkdir()
    return Dry(folder)


@pytest.fixture
def short_parts(dry: Dry) -> list[Part]:
    """The parts of the short mode."""
    status, printed = dry.run("short")
    assert status == 0, printed
    return dry.parts()


def session_of(part: Part, noted_stages: list[NotedStage]) -> NotedStage:
    """What a measurement would do on a GPU. It has one stage, at one size."""
    noted_stages.clear()
    with pytest.MonkeyPatch.context() as patch:
        device = torch.device("cuda")
        patch.setattr("bench.harness.session.choose_device", lambda _: device)
        done = CliRunner().invoke(throughput_main, list(part.words[1:]))
    assert done.exit_code == 0, done.stderr
    (noted,) = noted_stages
    return noted


def count_turns(meter: Meter) -> int:
    return meter.warmup + meter.repeats


def count_steps(workload: Workload, meter: Meter) -> int:
    """Training steps of the stage train: from the loader, from the device, of peers."""
    num_contenders = 2 + len(peers_of("train", workload.peers))
    num_archs = len(workload.archs)
    return count_turns(meter) * num_contenders * num_archs * workload.num_steps


def count_loaded(
    workload: Workload, meter: Meter, peers: Sequence[str]
) -> Counter[str]:
    """Slices that the stage loader loads from both levels, by role, on a GPU."""
    by_peer = min(workload.num_loaded, MAX_PEER_SLICES)
    num_peers = 2 * len(peers) - ("fastai-png" in peers)  # which has one level
    num_checked = len(CHECKS) * by_peer
    a_turn = {
        "ichfast": 2 * (workload.num_loaded + num_checked),
        "limit": 2 * (1 + len(GPU_COPIES)) * workload.num_loaded,
        "peer": num_peers * by_peer,
    }
    return Counter({role: count_turns(meter) * n for role, n in a_turn.items()})


def count_packed(workload: Workload, meter: Meter) -> Counter[str]:
    """Slices that the stage packed loads or unpacks from both levels, on a GPU.

    The loader from the page cache and from the GPU's memory counts as ``ichfast`` for
    both stores, the kernels as ``limit``: no part of the loader is in them.
    """
    num_slices = min(workload.num_loaded, MAX_SLICES)
    a_turn = {"ichfast": 2 * 4 * num_slices, "limit": 2 * 2 * KERNEL_TIMES * num_slices}
    return Counter({role: count_turns(meter) * n for role, n in a_turn.items()})


def guess_seconds(noted: NotedStage) -> float:
    """The time of a part if it reaches `MIN_RATE`, by what it has to do."""
    (workload,), meter = noted.workloads, noted.meter
    if noted.stage == "train":
        num_slices = count_steps(workload, meter) * workload.train_batch_size
        turns_s = num_slices * (workload.size / 224) ** 2 / MIN_RATE["train"]
    else:
        present = [
            name
            for name in peers_of("loader", workload.peers)
            if MACHINE_PACKAGES.issuperset(PEERS[name].packages)
        ]
        loaded = (
            count_packed(workload, meter)
            if noted.stage == "packed"
            else count_loaded(workload, meter, present)
        )
        turns_s = sum(loaded[role] / MIN_RATE[role] for role in loaded)
    return START_S[noted.stage] + turns_s


def test_the_short_mode_ends_within_eight_minutes(short_parts: list[Part]) -> None:
    assert sum(part.limit_s for part in short_parts) <= MAX_SHORT_S


@pytest.mark.slow
def test_each_part_of_the_short_mode_has_time_for_its_steps_and_slices(
    short_parts: list[Part], noted_stages: list[NotedStage]
) -> None:
    too_long = {
        " ".join(part.words): f"{needed_s:.0f} s of {part.limit_s:.0f}"
        for part in short_parts
        if part.is_measurement
        and (needed_s := guess_seconds(session_of(part, noted_stages))) > part.limit_s
    }
    assert too_long == {}


@pytest.mark.slow
def test_the_readme_gives_the_limits_and_the_steps_of_the_short_mode(
    short_parts: list[Part], noted_stages: list[NotedStage]
) -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    limits_s = [
        int(seconds) for seconds in re.findall(r"^\| [^|]*\| (\d+) \|", text, re.M)
    ]
    assert limits_s == [part.limit_s for part in short_parts]
    noted = [
        session_of(part, noted_stages) for part in short_parts if part.is_measurement
    ]
    num_steps = sum(
        count_steps(each.workloads[0], each.meter)
        for each in noted
        if each.stage == "train"
    )
    assert f"{num_steps:,} training\nsteps in all" in text


@pytest.mark.slow
def test_the_short_mode_tests_first_and_trains_every_backbone_at_both_sizes(
    short_parts: list[Part], noted_stages: list[NotedStage]
) -> None:
    doctor, tests, *measurements = short_parts
    assert doctor.words == ("-m", "ichfast", "doctor")
    assert tests.words[-3:] == ("-m", "gpu", "tests/gpu")
    assert all(part.is_measurement for part in measurements)
    noted = [session_of(part, noted_stages) for part in measurements]
    trained = [
        (arch, each.workloads[0].size, "timm-step" in each.workloads[0].peers)
        for each in noted
        if each.stage == "train"
        for arch in each.workloads[0].archs
    ]
    first, *others = BACKBONES
    assert trained == [
        (first, 224, True),
        *((arch, 224, False) for arch in others),
        *((arch, 512, False) for arch in BACKBONES),
    ]
    assert FULL_SIZES == (224, 512)
    assert [each.stage for each in noted[:2]] == ["loader", "packed"]
    assert noted[0].workloads[0].peers == tuple(PEERS)


def test_the_full_mode_has_no_time_limit(dry: Dry) -> None:
    status, printed = dry.run("--full", "out", "--device", "cuda")
    assert status == 0, printed
    doctor, tests, bench = dry.parts()
    assert doctor.words == ("-m", "ichfast", "doctor")
    assert {part.limit_s for part in (tests, bench)} == {math.inf}
    out = str(dry.folder / "out")
    assert bench.words == (
        *("bench/throughput.py", "--out", out),
        *("--full", "--json", f"{out}/bench.json", "--device", "cuda"),
    )


def test_after_a_part_that_fails_the_others_run_and_the_status_is_1(dry: Dry) -> None:
    status, _ = dry.run(
        "short", python='#!/bin/sh\necho "ran $*"\ncase $* in *pytest*) exit 3; esac\n'
    )
    assert status == 1
    assert len(dry.parts()) == 7
    results = dry.folder / "gpu-results"
    assert "ran -m ichfast doctor" in (results / "doctor.txt").read_text()
    assert "ran -m pytest" in (results / "tests.txt").read_text()
    assert (results / "bench.txt").read_text().count("ran bench/throughput.py") == 5


def test_what_the_doctor_finds_does_not_count(dry: Dry) -> None:
    status, _ = dry.run("short", python="#!/bin/sh\n[ $3 != doctor ]\n")
    assert status == 0
    assert len(dry.parts()) == 7


def test_a_process_that_outlives_its_part_holds_nothing_up(dry: Dry) -> None:
    lives = dry.folder / "lives"
    python = f"#!/bin/sh\nsetsid sleep 300 &\necho $! >>{lives}\n"
    try:
        status, printed = dry.run("short", python=python)
    finally:
        for pid in lives.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert status == 0, printed
    assert len(dry.parts()) == 7


def test_a_terminated_script_ends_its_part(dry: Dry) -> None:
    dry.run("short")  # writes the stubs
    running = dry.folder / "running"
    (dry.folder / "python").write_text(f"#!/bin/sh\necho $$ >{running}\nsleep 300\n")
    process = subprocess.Popen(
        [SCRIPT, "short"],
        stdout=subprocess.DEVNULL,
        cwd=dry.folder,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(dry.folder / "python")},
    )
    end_s = time.monotonic() + 30
    while not running.exists() or not running.read_text():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=30) == 130
    while _runs(int(running.read_text())):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether a process runs. One that ended and still has its entry does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("arguments", [(), ("long",), ("--device", "cpu")])
def test_a_mode_must_be_named(dry: Dry, arguments: tuple[str, ...]) -> None:
    status, printed = dry.run(*arguments)
    assert status == 2
    assert "bench/on_gpu.sh short" in printed
    assert not (dry.folder / "noted").exists()


class CountingMeter(Meter):
    """Counts the units of every turn in place of the time."""

    counted: Counter[tuple[str, str]]
    """By role and name."""

    def _take_turn(self, contender: Contender) -> float:
        contender.before()
        units = contender.run()
        assert isinstance(units, int)
        self.counted[contender.role, contender.name] += units
        return 1.0


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "loader"])
def test_what_is_counted_is_what_a_stage_does(stage: str, toy: Workload) -> None:
    meter = CountingMeter(device="cpu", repeats=1, warmup=1)
    object.__setattr__(meter, "counted", Counter())
    records = run_stage(stage, [toy], meter)
    by_role: Counter[str] = Counter()
    for (role, name), units in meter.counted.items():
        is_loader = name in CHECKS
        by_role["ichfast" if is_loader else role] += units * (name != "loader alone")
    if stage == "train":
        assert by_role.total() == count_steps(toy, meter) * toy.train_batch_size
        return
    present = {record.name for record in records if record.estimate is not None}
    expected = count_loaded(toy, meter, [n for n in toy.peers if n in present])
    # On a CPU the resample is the only limit.
    expected["limit"] //= 1 + len(GPU_COPIES)
    assert by_role == expected


@pytest.mark.slow
def test_what_is_counted_is_what_the_stage_packed_does_on_a_gpu(
    toy: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.packed_gpu._reason_to_skip", lambda _: "")
    meter = CountingMeter(device="cpu", repeats=1, warmup=1)
    object.__setattr__(meter, "counted", Counter())
    with toy.open_store() as raw:
        pack_store(raw.path, tmp_path / "packed", workers=1)
        with Store(tmp_path / "packed") as packed:
            for level in raw.levels:
                measure_on_gpu(packed, raw, level, toy, meter)
    from_page_cache = count_turns(meter) * 2 * 2 * toy.num_loaded
    expected = count_packed(toy, meter).total() - from_page_cache
    assert meter.counted.total() == expected


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """What the script left, run once for several tests."""

    status: int
    printed: str
    out_dir: Path


@pytest.fixture(scope="module")
def script_run(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> ScriptRun:
    """The script, told to measure reading the tiny store on the CPU."""
    folder = tmp_path_factory.mktemp("script")
    done = subprocess.run(
        [
            *(SCRIPT, "--full", folder / "out"),
            *("read", "--device", "cpu", "--store", tiny_store_path),
            *("--batch-size", "4", "--size", "32", "--peers", "none"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            "XDG_CACHE_HOME": str(folder),
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
            "PYTEST_XDIST_AUTO_NUM_WORKERS": "1",  # there is nothing to run
        },
        cwd=folder,
    )
    return ScriptRun(done.returncode, done.stdout, folder / "out")


@pytest.mark.slow
def test_the_script_runs_at_toy_size_without_a_gpu(script_run: ScriptRun) -> None:
    assert script_run.status == 0, script_run.printed
    assert "skipped" in (script_run.out_dir / "tests.txt").read_text()
    document = json.loads((script_run.out_dir / "bench.json").read_text())
    assert document["stages"].keys() == {"read"}
    assert len(document["all"]) >= 3
    assert len(read_records(next(script_run.out_dir.glob("*.jsonl")))) >= 3


@pytest.mark.slow
def test_the_command_prints_a_table_and_one_json_line_last(
    script_run: ScriptRun,
) -> None:
    *table, last = (script_run.out_dir / "bench.txt").read_text().splitlines()
    assert "memcpy" in "\n".join(table)
    summary = json.loads(last)
    assert summary["stages"]["read"]["hot"]["ichfast"]["median"] > 0
    assert Path(summary["records"]).parent == script_run.out_dir
    assert Path(summary["figure"]).is_file()
