"""Profiles: a trace, and a table of the parts of a step."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ichfast.training.profiler import PARTS, SUMMARY, TRACE, Profile, format_summary
from tests.training.tiny_trainer import CONFIG, assert_same_run, fit, make_trainer

DEVICE = torch.device("cpu")


def test_a_run_is_traced_and_timed_and_ends_the_same(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain")
    fit(plain)
    profiled = make_trainer(tmp_path / "profiled")
    profiled.stepper.spans = Profile(DEVICE, tmp_path / "profiled")
    fit(profiled)
    profiled.stepper.spans.close()
    assert_same_run(profiled, plain)

    events = json.loads((tmp_path / "profiled" / TRACE).read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    for part in PARTS:
        assert names.count(f"ichfast.{part}") == 5, part
    assert "aten::conv2d" in names

    table = (tmp_path / "profiled" / SUMMARY).read_text()
    rows = dict(re.findall(r"^ +(\w+) +([\d.]+) ms", table, re.MULTILINE))
    assert list(rows) == [*PARTS, "other", "step"]
    assert float(rows["backward"]) > 0


def test_a_run_that_is_too_short_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = make_trainer(tmp_path, replace(CONFIG, epochs=1))
    short.stepper.spans = Profile(DEVICE, tmp_path)
    fit(short)
    short.stepper.spans.close()
    assert "needs 18 steps and this run had 5" in caplog.text
    assert (tmp_path / TRACE).exists()
    assert not (tmp_path / SUMMARY).exists()


def test_the_table_adds_up() -> None:
    seconds = {"wait": 1.0, "copy": 0.5, "forward": 2.0, "backward": 4.0}
    text = format_summary(seconds | {"optimizer": 0.5, "step": 10.0}, num_steps=10)
    assert "wait          100.00 ms   10.0 %" in text
    assert "other         200.00 ms   20.0 %" in text
    assert "step         1000.00 ms  100.0 %" in text
