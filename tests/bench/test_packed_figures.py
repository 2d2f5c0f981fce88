"""What packed slices mean: sizes, what holds them, the model, the table to choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.harness.estimates import estimate
from bench.harness.measure import Record
from bench.harness.records import RESULTS_DIR, read_newest, write_records
from bench.harness.table import format_table
from bench.readme import (
    PACKED_PAGE,
    README,
    SPEED_PAGE,
    make_block,
    make_choice,
    make_packed_block,
    make_pages,
)
from bench.scale import format_capacity
from bench.scale import main as scale_main
from bench.scaling.capacity import encodings
from bench.scaling.fleet import Storage, part_rates
from bench.scaling.quantities import find_quantities, make_node
from tests.bench.made_up_records import record_of

SETTINGS = {"slices": 208, "synthetic": False}
BYTES = [
    record_of("packed", f"level {level}, bytes", "packed", [percent], unit="%")
    for level, percent in ((512, 25.8), (256, 34.0))
]
BYTES = [replace(record, settings=SETTINGS) for record in BYTES]


def compared(case: str, ratio: float, name: str = "raw store") -> list[Record]:
    """A case of ours, and of what it is compared with."""
    ours = record_of("packed", case, "ichfast", [100.0])
    limit = record_of("packed", case, name, [100.0 / ratio], role="limit")
    return [ours, replace(limit, ratio=estimate([ratio]))]


LOADER = record_of("loader", "level 256 to 224", "ichfast", [2000.0])
RATES = [
    *compared("loader, level 256 to 224, page cache", 0.5),
    *compared("loader, level 512 to 224, 0.5 GB/s", 3.25),
    *compared("unpacking level 512, out of cache", 0.625, "memcpy"),
]


def test_sizes_of_the_competition_follow_from_what_was_measured() -> None:
    found = {(each.level, each.name): each for each in encodings(BYTES)}
    assert found[512, "raw"].total_gb == pytest.approx(394.68, abs=0.01)
    assert found[512, "packed"].total_gb == pytest.approx(101.83, abs=0.01)
    assert found[256, "packed"].slice_bytes == pytest.approx(0.34 * 2 * 256**2)


def test_a_tenth_of_what_holds_them_stays_free() -> None:
    found = {(each.level, each.name): each for each in encodings(BYTES)}
    assert found[512, "raw"].holder("GPU") == "none"
    assert found[512, "packed"].holder("GPU") == "141 GB"
    assert found[512, "packed"].holder("memory") == "128 GB"
    assert found[256, "packed"].holder("GPU") == "40 GB"
    assert replace(found[256, "packed"], share=0.37).holder("GPU") == "48 GB"


def test_without_a_record_nothing_is_said_of_packed_slices() -> None:
    assert [each.total_gb is None for each in encodings([])] == [False, True] * 2
    lines = format_capacity(encodings([]), {"any": None}).splitlines()
    assert lines[3].split() == ["512", "packed", *["not", "measured"] * 5]


def test_the_disk_that_feeds_a_gpu_is_its_rate_times_the_bytes_of_a_slice() -> None:
    table = format_capacity(encodings(BYTES), {"resnext50": 1000.0})
    assert "disk for resnext50" in table
    rates = [line.split()[-2] for line in table.splitlines()[2:]]
    assert rates == ["524", "135", "131", "44.6"]


def test_a_packed_store_is_read_in_fewer_bytes_and_loaded_at_its_own_rate() -> None:
    quantities = find_quantities(
        [LOADER, *BYTES, *RATES], level=256, size=224, given={}
    )
    disks = Storage(name="disks", node_bytes_per_s=1e9)
    raw, packed = (
        part_rates(
            disks,
            make_node(
                quantities, slice_bytes=1000, gpu_per_s=None, is_packed=is_packed
            ),
            1,
        )
        for is_packed in (False, True)
    )
    assert packed["storage"] == pytest.approx(raw["storage"] / 0.34)
    assert packed["loader"] == pytest.approx(raw["loader"] * 0.5)
    assert packed["upload"] == raw["upload"]


@pytest.mark.parametrize("is_measured", [False, True])
def test_the_model_shows_packed_stores_once_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_measured: bool
) -> None:
    monkeypatch.setattr("bench.scale.RESULTS_DIR", tmp_path)
    records = [*BYTES, *RATES] if is_measured else []
    write_records(tmp_path / "a.jsonl", [LOADER, *records])
    done = CliRunner().invoke(
        scale_main, ["--gpu", "resnext50=900", "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.stderr
    assert ("resnext50 at 224, packed" in done.stdout) == is_measured
    assert ("33.5 GB" in done.stdout) == is_measured


def test_the_table_to_choose_shows_sizes_ratios_and_their_origin() -> None:
    lines = make_choice([*BYTES, *RATES]).splitlines()
    assert "| level 512 | 394.7 GB | 101.8 GB |" in lines
    assert (
        "| fits into | 512 GB of memory, no GPU | 128 GB of memory, a GPU of 141 GB |"
    ) in lines
    assert "| unpacking on one core, of memcpy |  | 0.62 |" in lines
    disk = "loader on a CPU, disk of 0.5 GB/s, level 512 / 256"
    assert f"| {disk} | 1 | 3.25 / not measured |" in lines
    assert lines[-1] == (
        "Measured with 208 slices; 2 cores of P, no GPU used; commit `abc`, 2026-01-01."
    )
    cases = ("loader, level 512 to 224, 0.5 GB/s", "--cache device, level 256 to 224")
    on_gpu = [
        replace(record, device="cuda")
        for case in cases
        for record in compared(case, 0.75)
    ]
    lines = make_choice([*BYTES, *RATES, *on_gpu]).splitlines()
    assert f"| {disk} | 1 | 3.25 / not measured |" in lines
    resident = "loader, `--cache device`, level 512 / 256"
    assert f"| {resident} | 1 | not measured / 0.75 |" in lines
    synthetic = replace(BYTES[0], settings={"slices": 8, "synthetic": True})
    assert "with 8 synthetic slices;" in make_choice([synthetic])


def test_the_figures_of_packed_slices_are_on_their_own_page() -> None:
    zstd = replace(BYTES[0], name="zstd", role="peer", estimate=estimate([45.0]))
    on_page = make_packed_block([LOADER, *BYTES, *RATES, zstd])
    assert "| level 512, bytes: packed | 25.8 % |  |  | zstd 45 |" in on_page
    assert "raw store 30.8 | 3.25 |" in on_page
    assert "level 256 to 224 | 2,000" not in on_page
    assert on_page.endswith("On a GPU: not measured.")
    assert "packed" not in make_block([LOADER, *BYTES, *RATES])


def test_the_pages_hold_the_figures_of_the_committed_records() -> None:
    pages = make_pages(read_newest(RESULTS_DIR))
    assert pages.keys() == {README, PACKED_PAGE, SPEED_PAGE}
    for path, expected in pages.items():
        assert path.read_text("utf-8") == expected, "run `python bench/readme.py`"


def test_the_table_shows_aims_for_rates_costs_and_ratios() -> None:
    ours, limit = compared("reader, level 512, page cache", 0.5)
    ours = replace(ours, settings={"aim": 200.0})
    limit = replace(limit, settings={"aim_ratio": 0.85})
    cost = replace(BYTES[0], settings={"aim": 26.3})
    lines = format_table([ours, limit, cost]).splitlines()[2:]
    assert [line.split("aim: ")[1] for line in lines] == [
        "over 200 slices/s",
        "85% of it or more",
        "under 26.3 %",
    ]
