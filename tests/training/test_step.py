"""`--compile` and `--cuda-graphs`: the same training, or one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ichfast.compiler import compile_forward
from ichfast.errors import RecipeError
from tests.training.tiny_trainer import (
    CONFIG,
    TinyNet,
    fit,
    make_trainer,
    without_clock,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_compiled_before_or_after() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiled_network_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing and autograd as always, but no code that a C++ compiler must see.
    traced = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("torch.compile", lambda model, **_: traced(model))
    config = replace(CONFIG, epochs=2, compile=True)
    plain = make_trainer(tmp_path / "plain", replace(config, compile=False))
    compiled = make_trainer(tmp_path / "compiled", config)
    expected = without_clock(fit(plain))
    for row, wanted in zip(without_clock(fit(compiled)), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    assert compiled.stepper._forward is not compiled.stepper.model


def test_without_a_compiler_training_goes_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "torch._inductor.config.cpp.cxx", (str(tmp_path / "no-compiler"),)
    )
    model = TinyNet()
    assert compile_forward(model, CPU, cuda_graphs=False) is model
    (line,) = [
        each.getMessage() for each in caplog.records if each.levelname != "DEBUG"
    ]
    assert line.startswith("not compiled, the compiler does not work here: ")
    assert "no-compiler" in line
    assert "\n" not in line


def test_cuda_graphs_are_refused_without_a_gpu(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(CONFIG, cuda_graphs=True))
    with pytest.raises(RecipeError, match=r"needs a GPU .* leave out --cuda-graphs"):
        fit(trainer)
