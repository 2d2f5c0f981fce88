"""Steps: compiled, with CUDA graphs, and with accumulated gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ichfast.errors import RecipeError, TrainError
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.step import compile_forward
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


@pytest.mark.slow
def test_a_compiled_network_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tracing and autograd as usual, but no code for a C++ compiler.
    traced = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr("torch.compile", lambda model, **_: traced(model))
    config = replace(CONFIG, epochs=2, compile=True)
    plain = make_trainer(tmp_path / "plain", replace(config, compile=False))
    compiled = make_trainer(tmp_path / "compiled", config)
    expected = without_clock(fit(plain))
    for row, wanted in zip(without_clock(fit(compiled)), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    assert compiled.stepper._phase.network.forward is not compiled.stepper.model


@pytest.mark.slow
def test_without_a_compiler_training_continues_with_a_warning(
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
    with pytest.raises(
        RecipeError, match=r"needs a GPU .* leave out train.cuda_graphs=true"
    ):
        fit(trainer)


PLAIN = TrainConfig(phases=(Phase(epochs=2, lr=1e-2),), ema_decay=0.5)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (2, 4), (1, 8)])
def test_accumulated_batches_make_the_step_of_the_larger_one(
    tmp_path: Path, batch_size: int, accumulate: int
) -> None:
    whole = make_trainer(tmp_path / "whole", PLAIN, looks_at_batch=False)
    expected = without_clock(fit(whole, batch_size=8))
    parts = make_trainer(
        tmp_path / "parts", replace(PLAIN, accumulate=accumulate), looks_at_batch=False
    )
    history = without_clock(fit(parts, batch_size=batch_size))
    for row, wanted in zip(history, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    for name, tensor in parts.stepper.averaged_model.state_dict().items():
        torch.testing.assert_close(
            tensor, whole.stepper.averaged_model.state_dict()[name]
        )


def test_batch_norm_sees_one_batch_at_a_time(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", PLAIN)
    parts = make_trainer(tmp_path / "parts", replace(PLAIN, accumulate=2))
    fit(whole, batch_size=8)
    fit(parts, batch_size=4)
    counts = [
        int(trainer.stepper.model.get_buffer("norm.num_batches_tracked"))
        for trainer in (whole, parts)
    ]
    assert counts == [4, 8]


def test_an_epoch_without_a_whole_step_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(PLAIN, accumulate=6))
    with pytest.raises(TrainError, match=r"5 batch.* do not make one step of 6; lower"):
        fit(trainer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "train.accumulate is at least 1"),
        ({"checkpoint_minutes": -1.0}, "train.checkpoint_minutes at least 0"),
        ({"best_by": "train_loss"}, "train.best_by is valid_loss or valid_weighted"),
        ({"patience": 0}, "train.patience must be at least 1"),
        ({"seed": -1}, r"train.seed is from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": 2**63}, "got 9223372036854775808"),
        ({"cuda_graphs": True, "accumulate": 2}, "use one of the two"),
    ],
)
def test_settings_out_of_range_are_refused(
    settings: dict[str, int | float | str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(PLAIN, **settings)  # type: ignore[arg-type]
