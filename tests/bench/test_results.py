"""Results files: written, read, compared and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.compare import compare
from bench.compare import main as compare_main
from bench.harness.measure import BenchError
from bench.harness.records import read_records, write_records
from bench.plot import main as plot_main
from tests.bench.made_up_records import compare_two, record_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_records_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    records = compare_two([1, 2, 3, 4], repeats=2, warmup=0)
    write_records(tmp_path / "new" / "a.jsonl", records)
    assert read_records(tmp_path / "new" / "a.jsonl") == [
        replace(record, settings=dict(record.settings)) for record in records
    ]


def test_a_file_that_holds_no_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no results in"):
        read_records(tmp_path / "absent.jsonl")
    for text, message in (("{}\n", "line 1 is not a record"), ("", "has no records")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(BenchError, match=message):
            read_records(tmp_path / "bad.jsonl")


def test_a_rate_below_the_interval_before_it_is_slower() -> None:
    before = [
        record_of("read", "hot", name, [10.0, 11.0, 12.0]) for name in ("a", "b", "c")
    ]
    after = [
        record_of("read", "hot", "a", [8.0, 9.0, 9.5]),
        record_of("read", "hot", "b", [9.0, 10.5, 11.0]),
        record_of("read", "hot", "c", [13.0, 14.0, 15.0]),
    ]
    verdicts = [change.verdict for change in compare(before, after)]
    assert verdicts == ["slower", "same", "faster"]


def test_more_seconds_or_mebibytes_count_as_slower() -> None:
    before = replace(record_of("read", "hot", "a", [10.0, 11.0]), unit="MiB")
    after = replace(record_of("read", "hot", "a", [14.0, 15.0]), unit="MiB")
    assert [change.verdict for change in compare([before], [after])] == ["slower"]
    assert [change.verdict for change in compare([after], [before])] == ["faster"]


def test_compare_fails_if_ours_became_slower_and_not_if_a_peer_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, slow = [10.0, 11.0], [5.0, 6.0]
    for role, status in (("ichfast", 1), ("peer", 0)):
        paths = [tmp_path / f"{role}-{k}.jsonl" for k in range(2)]
        for path, rates in zip(paths, (fast, slow), strict=True):
            write_records(path, [record_of("read", "hot", "x", rates, role=role)])
        assert compare_main([str(path) for path in paths]) == status
        assert "slower" in capsys.readouterr().out


def test_compare_names_the_file_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_main([str(tmp_path / "absent"), str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("Error: no results in")
    assert compare_main([]) == 2


def test_compare_warns_of_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = record_of("read", "hot", "x", [1.0, 2.0])
    write_records(tmp_path / "a", [ours])
    other = {"processor": "Q", "cores": 2, "gpus": []}
    write_records(tmp_path / "b", [replace(ours, environment=other)])
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "not the same machine" in capsys.readouterr().err


def test_the_figure_shows_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "a.jsonl", [record_of("read", "hot", "x", [1.0, 2.0])])
    assert plot_main([str(tmp_path / "a.jsonl")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    nothing = replace(
        record_of("read", "hot", "x", [1.0]), estimate=None, reason="no GPU"
    )
    write_records(tmp_path / "b.jsonl", [nothing])
    assert plot_main([str(tmp_path / "b.jsonl")]) == 1
    assert "nothing was measured" in capsys.readouterr().err
