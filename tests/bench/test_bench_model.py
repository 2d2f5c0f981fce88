"""The model of many GPUs, and the figures of the pages, from records made up here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.harness.estimates import estimate
from bench.harness.measure import BenchError
from bench.harness.records import read_newest, write_records
from bench.plot import draw
from bench.readme import (
    PACKED_PAGE,
    README,
    SPEED_PAGE,
    make_block,
    make_packed_block,
    make_summary,
)
from bench.readme import main as readme_main
from bench.scale import NUM_GPUS, check_ranks
from bench.scale import main as scale_main
from bench.scaling.fleet import Node, Storage, bottleneck, part_rates
from bench.scaling.quantities import ASSUMED, find_quantities
from tests.bench.made_up_records import record_of

ROOT = Path(__file__).parents[2]


LOADER = record_of("loader", "level 256 to 224", "ichfast", [2000.0])
RANK = {"level": 256, "size": 224, "cores": 1}
RANKS = [
    record_of(
        "scale", "loader", "each of 2 ranks", [800.0], settings={**RANK, "ranks": 2}
    ),
    record_of("scale", "loader", "alone", [1000.0], settings={**RANK, "ranks": 1}),
]
DISK = record_of(
    "read", "cold", "sequential read", [4000.0], settings={"unit_bytes": 500_000}
)

NODE = Node(
    gpus=8,
    slice_bytes=100,
    stored_bytes=100.0,
    loader_per_gpu=50.0,
    upload_bytes_per_s=10_000.0,
    gpu_per_s=None,
)
DISKS = Storage(name="disks", node_bytes_per_s=20_000.0)
SERVER = Storage(name="server", node_bytes_per_s=20_000.0, shared_bytes_per_s=30_000.0)


def test_parts_grow_with_gpus_and_disks_with_machines() -> None:
    assert part_rates(DISKS, NODE, 1) == {"storage": 200, "loader": 50, "upload": 100}
    assert part_rates(DISKS, NODE, 8) == {"storage": 200, "loader": 400, "upload": 800}
    assert part_rates(DISKS, NODE, 9)["storage"] == 400


def test_what_is_shared_does_not_grow() -> None:
    assert part_rates(SERVER, NODE, 8)["storage"] == 200
    assert part_rates(SERVER, NODE, 1024)["storage"] == 300
    requests = replace(SERVER, shared_slices_per_s=7.0)
    assert part_rates(requests, NODE, 1024)["storage"] == 7


def test_the_bottleneck_is_the_slowest_part_and_a_gpu_only_if_its_rate_is_known() -> (
    None
):
    assert bottleneck(part_rates(DISKS, NODE, 1)) == ("loader", 50)
    assert bottleneck(part_rates(DISKS, NODE, 8)) == ("storage", 200)
    with_gpu = replace(NODE, gpu_per_s=20.0)
    assert bottleneck(part_rates(DISKS, with_gpu, 8)) == ("GPU", 160)


def test_measured_figures_go_before_assumed_ones_and_given_ones_before_both() -> None:
    found = find_quantities(
        [LOADER, DISK], level=256, size=224, given={"link": 5.0, "disk": None}
    )
    assert found["loader"].value == 1000.0
    assert found["loader"].source.startswith("measured: 2 cores of P, no GPU used; abc")
    assert found["disk"].value == 2000.0
    assert found["disk"].source.startswith("measured")
    assert (found["link"].value, found["link"].source) == (5.0, "given")
    assert found["server"].source.startswith("assumed")


def test_every_assumed_figure_is_marked_as_assumed() -> None:
    assert all(each.source.startswith("assumed: ") for each in ASSUMED.values())
    assert "loader" not in ASSUMED


def test_a_loader_without_a_measurement_is_an_error() -> None:
    with pytest.raises(BenchError, match="no results hold the loader's rate from"):
        find_quantities([LOADER], level=512, size=224, given={})


def test_predictions_for_ranks_are_shown_beside_measurements() -> None:
    lines = check_ranks([LOADER, *RANKS], level=256, size=224)
    assert lines == [
        "1 rank(s): predicted 1,000 slices/s, measured 1,000: +0%",
        "2 rank(s): predicted 2,000 slices/s, measured 1,600: +25%",
    ]


def test_ranks_that_share_cores_are_predicted_by_the_cores() -> None:
    eight = replace(
        RANKS[0], name="each of 8 ranks, 2 at a time", settings={**RANK, "ranks": 8}
    )
    together = replace(eight, name="all of 8 ranks, 2 at a time")
    (*_, line) = check_ranks([LOADER, eight, together], level=256, size=224)
    assert line == "8 rank(s): predicted 2,000 slices/s, measured 6,400: -69%"


def test_limits_are_shown_only_beside_the_record_they_were_compared_with() -> None:
    limit = replace(LOADER, name="warp", role="limit", ratio=estimate([0.25]))
    waiting = replace(LOADER, name="waiting", unit="%")
    rows = make_block([LOADER, waiting, limit]).splitlines()
    assert [row.count("warp 2,000") for row in rows if "| loader |" in row] == [1, 0]


def test_ranks_of_another_machine_or_size_are_not_compared() -> None:
    other = {"processor": "Q", "cores": 2, "gpus": []}
    elsewhere = [replace(record, environment=other) for record in RANKS]
    for records, size in (([LOADER, *elsewhere], 224), ([LOADER, *RANKS], 512)):
        lines = check_ranks(records, level=256, size=size)
        assert all("not measured" in line for line in lines)


@pytest.mark.slow
def test_the_model_prints_its_assumptions_and_draws_only_into_the_cache(
    tmp_path: Path,
) -> None:
    write_records(tmp_path / "a.jsonl", [LOADER, *RANKS])
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "bench" / "scale.py", "--gpu", "resnext50=900"),
            *("--results", tmp_path / "a.jsonl"),
        ],
        capture_output=True,
        text=True,
        env={"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert any("assumed: 100 Gb/s Ethernet" in line for line in table)
    assert "2 rank(s): predicted 2,000 slices/s, measured 1,600: +25%" in table
    found = json.loads(last)
    rows = found["predicted"]["resnext50 at 224"]["local NVMe"]
    assert [row[0] for row in rows] == list(NUM_GPUS)
    assert rows[0] == [1, "GPU", 900.0]
    figure = Path(found["figure"])
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert figure.is_relative_to(tmp_path)


def test_the_picture_goes_to_the_folder_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.scale.RESULTS_DIR", tmp_path)
    write_records(tmp_path / "a.jsonl", [LOADER])
    done = CliRunner().invoke(scale_main, ["--out", str(tmp_path / "here")])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "here" / "scale.png").is_file()
    assert "any network (GPU: not measured)" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "resnext50"], "--gpu takes NETWORK=RATE"),
        (["--gpu", "resnext50=0"], "--gpu takes NETWORK=RATE"),
        (["--results", "absent.jsonl"], "no results in absent.jsonl; make some"),
        (["--size", "96"], "no results hold the loader's rate from level 256 to 96"),
    ],
)
def test_bad_input_of_the_model_gives_one_line_with_a_remedy(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = CliRunner().invoke(scale_main, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stdout == ""


def test_the_newest_record_of_each_thing_on_each_machine_counts(tmp_path: Path) -> None:
    newer = replace(LOADER, date="2026-02-01T00:00Z", commit="def")
    other = replace(LOADER, environment={**LOADER.environment, "cores": 64})
    write_records(tmp_path / "z.jsonl", [LOADER])
    write_records(tmp_path / "a.jsonl", [newer, other])
    found = read_newest(tmp_path)
    assert [(each.commit, each.environment["cores"]) for each in found] == [
        ("abc", 64),
        ("def", 2),
    ]
    assert read_newest(tmp_path / "absent") == []


def test_a_case_is_shown_with_records_of_one_commit(tmp_path: Path) -> None:
    peer = replace(LOADER, name="ffcv", role="peer", ratio=estimate([1.5]))
    newer = replace(LOADER, date="2026-02-01T00:00Z", commit="def")
    newest_peer = replace(peer, date="2026-03-01T00:00Z", commit="ghi")
    failed = replace(newer, commit="ghi", estimate=None, date=newest_peer.date)
    older = record_of("read", "hot", "ichfast", [9.0])
    records = [LOADER, peer, newer, newest_peer, failed, older]
    write_records(tmp_path / "a.jsonl", records)
    found = read_newest(tmp_path)
    assert found == [older, newer]
    first, second = make_block(found).split("commit `")[1:]
    assert "| loader |" in first
    assert "| read |" in second
    assert "ffcv" not in first + second
    figure = draw(records)
    assert {ax.get_title("left"): len(ax.patches) for ax in figure.axes} == {
        "read: hot, slices/s [1]": 1,
        "loader: level 256 to 224, slices/s [2]": 1,
    }
    assert "[1] abc, 2026-01-01; [2] def, 2026-02-01" in figure.get_suptitle()


def test_the_block_names_machine_commit_ratios_and_what_is_missing() -> None:
    limit = replace(LOADER, name="warp", role="limit", ratio=estimate([0.25]))
    peer = replace(LOADER, name="others", role="peer", ratio=estimate([1.5]))
    missing = replace(LOADER, name="ffcv", role="peer", estimate=None, values=())
    block = make_block([LOADER, limit, peer, missing])
    assert "2 cores of P, no GPU used; commit `abc`, 2026-01-01; medians of 1" in block
    assert (
        "| loader | level 256 to 224 | 2,000 slices/s | warp 2,000 | 0.25 | "
        "others 2,000: 1.5 x |"
    ) in block
    assert "record: prepare, read, train, end to end, series, scale." in block
    assert "On a GPU: not measured." in block
    assert "ffcv" not in block


def test_figures_of_a_gpu_are_not_called_missing_once_there_are_some() -> None:
    environment = {"processor": "P", "cores": 16, "gpus": ["NVIDIA G"]}
    block = make_block(
        [LOADER, replace(LOADER, device="cuda", environment=environment)]
    )
    assert "NVIDIA G; 16 cores of P; commit `abc`" in block
    assert "On a GPU" not in block


def test_without_records_the_block_lists_what_is_not_measured() -> None:
    assert make_block([]).startswith("Not measured by a committed record: prepare")


def test_the_summary_compares_a_case_with_its_fastest_peer_and_its_limit() -> None:
    peers = [
        replace(LOADER, name=name, role="peer", estimate=estimate([rate]))
        for name, rate in (("slow", 100.0), ("fast", 900.0))
    ]
    missing = replace(LOADER, name="ffcv", role="peer", estimate=None, values=())
    limits = [
        replace(LOADER, name=name, role="limit", estimate=estimate([4000.0]))
        for name in ("another", "warp alone")
    ]
    left_out = replace(LOADER, case="level 512 to 512")
    records = [LOADER, *peers, missing, *limits, left_out]
    commit, case = "commits `abc` of 2026-01-01", "augmented batches, 256 to 224"
    assert make_summary(records).splitlines() == [
        "|  | ichfast | fastest other | limit |",
        "|---|--:|--:|--:|",
        f"| {case} | 2,000 slices/s | fast 900 | warp alone 4,000 |",
        "",
        f"Medians on 2 cores of P, no GPU used; {commit}; `~`: noisy.",
        "",
        "On a GPU: not measured.",
    ]


def test_the_summary_is_of_one_machine_of_a_gpu_where_there_is_one() -> None:
    environment = {"processor": "P", "cores": 16, "gpus": ["NVIDIA G"]}
    on_gpu = replace(LOADER, device="cuda", environment=environment)
    other = replace(LOADER, environment={"processor": "Q", "cores": 4})
    newer = replace(other, date="2027-01-01T00:00Z")
    gpu_only = make_summary([LOADER, on_gpu, newer])
    assert "\n\nMedians on NVIDIA G; 16 cores of P; commits" in gpu_only
    cpu_only = make_summary([LOADER, newer])
    assert "\n\nMedians on 4 cores of Q, no GPU used; commits" in cpu_only
    for summary in (gpu_only, cpu_only):
        assert summary.count("\n\nMedians on ") == summary.count("2,000 slices/s") == 1


def test_a_readme_without_its_marks_is_refused_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("no marks")
    write_records(tmp_path / "a.jsonl", [LOADER])
    monkeypatch.setattr("bench.readme.README", tmp_path / "README.md")
    monkeypatch.setattr("bench.readme.RESULTS_DIR", tmp_path)
    assert readme_main() == 1
    assert "needs the lines" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "no marks"


def test_the_generator_writes_the_pages_and_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"README": README, "PACKED_PAGE": PACKED_PAGE, "SPEED_PAGE": SPEED_PAGE}
    for name, page in pages.items():
        copy = tmp_path / page.name
        copy.write_text(page.read_text(encoding="utf-8"))
        monkeypatch.setattr(f"bench.readme.{name}", copy)
    monkeypatch.setattr("bench.readme.RESULTS_DIR", tmp_path)
    packed = replace(LOADER, stage="packed")
    write_records(tmp_path / "a.jsonl", [LOADER, packed])
    assert readme_main() == 0
    assert make_summary([LOADER]) in (tmp_path / "README.md").read_text()
    assert make_block([LOADER]) in (tmp_path / "speed.md").read_text()
    assert make_packed_block([packed]) in (tmp_path / "packed.md").read_text()
    assert (tmp_path / "throughput.png").is_file()
