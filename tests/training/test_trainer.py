"""The loop: phases, losses, patience, the best epoch, and errors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ichfast.augment.mixup import mix_up
from ichfast.errors import RecipeError, TrainError
from ichfast.models.precision import Amp, choose_amp
from ichfast.training.checkpoint import BEST, LAST, load_checkpoint
from ichfast.training.config import TrainConfig
from ichfast.training.history import History
from ichfast.training.meters import READ_INTERVAL, LossTrace, moving_average
from tests.training.tiny_trainer import (
    CONFIG,
    FakeLoader,
    fit,
    make_trainer,
    weights_of,
)


def test_training_lowers_the_loss_and_adds_a_row_per_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    history = fit(trainer)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]
    assert [row["phase"] for row in history] == [0, 0, 1, 1]
    assert history[-1]["valid_loss"] < history[0]["valid_loss"]
    assert all(0 <= row["wait_share"] <= 1 for row in history)
    assert load_checkpoint(tmp_path / LAST)["epoch"] == 4
    best = min(history, key=lambda row: row["valid_loss"])
    assert load_checkpoint(tmp_path / BEST)["epoch"] == best["epoch"] + 1


def test_a_frozen_body_keeps_its_weights_while_batch_norm_trains(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path, TrainConfig(phases=CONFIG.phases[:1]))
    before = weights_of(trainer.stepper.model)
    fit(trainer)
    after = weights_of(trainer.stepper.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
        "norm.num_batches_tracked", "fc.weight", "fc.bias",
    }  # fmt: skip


def test_a_loss_that_is_not_finite_names_the_slices_of_its_batch(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path)
    order = FakeLoader(shuffle=True).sampler.order(0)
    with pytest.raises(TrainError, match=f"ID_{order[5]}.*lower the learning rate"):
        fit(trainer, poison=int(order[5]))
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize("has_best", [False, True])
@pytest.mark.parametrize("spoilt", ["train", "valid"])
def test_the_advice_after_a_loss_that_is_not_finite_names_a_checkpoint_that_is_there(
    tmp_path: Path, spoilt: str, has_best: bool
) -> None:
    if has_best:
        (tmp_path / BEST).touch()
    trainer = make_trainer(tmp_path)
    loaders = [
        FakeLoader(shuffle=part == "train", poison=0 if part == spoilt else None)
        for part in ("train", "valid")
    ]
    with pytest.raises(TrainError) as caught:
        trainer.fit(*loaders)
    best = f", from the best epoch with --weights {tmp_path / BEST}"
    assert str(caught.value).endswith(
        "lower the learning rate (--set train.phases.0.lr=...) and start again in "
        f"another folder{best if has_best else ''}"
    )


def test_any_can_count_twice_in_the_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    logits_BK, targets_BK = torch.zeros(1, 6), torch.zeros(1, 6)
    logits_BK[0, 0] = 3.0
    per_class = nn.functional.binary_cross_entropy_with_logits(
        logits_BK, targets_BK, reduction="none"
    )[0]
    expected = (2 * per_class[0] + per_class[1:].sum()) / 7
    torch.testing.assert_close(trainer.stepper.loss(logits_BK, targets_BK), expected)


def test_mixup_mixes_images_and_targets_equally_and_keeps_the_larger_part() -> None:
    images = torch.arange(8.0).reshape(8, 1, 1, 1).repeat(1, 1, 2, 2)
    targets = images[:, 0, 0, :1].repeat(1, 6)
    mixed, mixed_targets = mix_up(images, targets, alpha=0.4, seed=(1, 2, 3))
    torch.testing.assert_close(mixed[:, 0, 0, 0], mixed_targets[:, 0])
    again, _ = mix_up(images, targets, alpha=0.4, seed=(1, 2, 3))
    other, _ = mix_up(images, targets, alpha=0.4, seed=(1, 2, 4))
    assert torch.equal(mixed, again)
    assert not torch.equal(mixed, other)


def test_the_share_of_mixup_is_the_larger_part_of_a_beta_draw() -> None:
    ones_and_zeros = torch.cat([torch.ones(2000, 6), torch.zeros(2000, 6)])
    images = ones_and_zeros[:, :1, None, None]
    _, mixed = mix_up(images, ones_and_zeros, alpha=0.4, seed=(0,))
    own = torch.where(ones_and_zeros[:, 0] == 1, mixed[:, 0], 1 - mixed[:, 0])
    partnered = own[own < 1]  # with a slice of the other kind
    draws = np.random.default_rng(5).beta(0.4, 0.4, 100_000)
    expected = np.maximum(draws, 1 - draws).mean()
    assert float(partnered.min()) >= 0.5
    assert abs(float(partnered.mean()) - expected) < 0.01


def test_losses_are_read_late_and_in_the_end_completely() -> None:
    trace = LossTrace(torch.device("cpu"))
    for step in range(READ_INTERVAL):
        trace.add(torch.tensor(float(step)), torch.tensor([step]))
    assert trace.due
    assert trace.read_late() is None
    assert trace.values == []
    trace.add(torch.tensor(math.inf), torch.tensor([77]))
    bad = trace.read_all()
    assert bad is not None
    assert bad.tolist() == [77]
    assert len(trace.values) == READ_INTERVAL + 1


def test_the_smooth_loss_is_fastais_moving_average_over_a_phase() -> None:
    """Weights .98^k, k batches back, divided by their sum, which spans epochs."""
    rng = np.random.default_rng(2)
    epochs = [rng.uniform(0.1, 0.9, 7).tolist() for _ in range(3)]
    smooth = math.nan
    for number, losses in enumerate(epochs):
        smooth = moving_average(losses, smooth, 7 * number)
        so_far = np.concatenate(epochs[: number + 1])
        weight = 0.98 ** np.arange(len(so_far))[::-1]
        assert smooth == pytest.approx(np.average(so_far, weights=weight), abs=1e-12)


def test_both_train_losses_are_in_the_history_and_each_phase_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[float]] = []
    clear = LossTrace.clear

    def keep_and_clear(trace: LossTrace) -> None:
        read.append(trace.values)
        clear(trace)

    monkeypatch.setattr(LossTrace, "clear", keep_and_clear)
    history = fit(make_trainer(tmp_path))
    assert len({row["phase"] for row in history}) == 2
    for number, row in enumerate(history):
        phase = [
            losses
            for losses, other in zip(read, history[: number + 1], strict=False)
            if other["phase"] == row["phase"]
        ]
        assert row["train_loss"] == pytest.approx(np.mean(phase[-1]), abs=1e-12)
        losses = np.concatenate(phase)
        weight = 0.98 ** np.arange(len(losses))[::-1]
        expected = np.average(losses, weights=weight)
        assert row["train_loss_smooth"] == pytest.approx(expected, abs=1e-12)


def test_the_number_format_is_the_best_the_device_has() -> None:
    cpu = choose_amp("auto", torch.device("cpu"))
    assert (cpu.dtype, cpu.needs_scaler) == (torch.float32, False)
    assert choose_amp("fp16", torch.device("cuda")).needs_scaler
    with pytest.raises(RecipeError, match="auto, bf16, fp16, fp32; got 'half'"):
        choose_amp("half", torch.device("cpu"))


def test_bf16_trains_through_the_same_path(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, TrainConfig(phases=CONFIG.phases[1:]))
    trainer.stepper.amp = Amp("cpu", torch.bfloat16)
    exact = make_trainer(tmp_path / "fp32", TrainConfig(phases=CONFIG.phases[1:]))
    assert abs(fit(trainer)[-1]["train_loss"] - fit(exact)[-1]["train_loss"]) < 0.02


def test_a_run_ends_when_it_gets_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.41, 0.3])
    trainer = make_trainer(tmp_path, replace(CONFIG, epochs=8, patience=2))
    monkeypatch.setattr(
        "ichfast.training.trainer.validate",
        lambda *_: dict.fromkeys(("valid_loss", "valid_accuracy"), next(losses)),
    )
    with caplog.at_level("INFO"):
        history = fit(trainer)
    assert [row["valid_loss"] for row in history] == [0.5, 0.4, 0.45, 0.41]
    assert "no better valid_loss for 2 epoch(s): the run ends after 4 of 8" in (
        caplog.text
    )
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 2
    assert load_checkpoint(tmp_path / LAST)["epoch"] == 4


def test_the_best_epoch_is_the_best_by_the_chosen_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, weighted = iter([0.2, 0.1, 0.3, 0.4]), iter([0.4, 0.3, 0.1, 0.2])
    config = replace(CONFIG, best_by="valid_weighted_log_loss")
    trainer = make_trainer(tmp_path, config)
    monkeypatch.setattr(
        "ichfast.training.trainer.validate",
        lambda *_: {
            "valid_loss": next(plain),
            "valid_weighted_log_loss": next(weighted),
        },
    )
    fit(trainer)
    assert load_checkpoint(tmp_path / BEST)["epoch"] == 3


def test_an_epoch_is_reported_before_it_is_saved(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def die(_: History) -> None:
        raise KilledError

    trainer = make_trainer(tmp_path)
    loaders = FakeLoader(shuffle=True), FakeLoader(shuffle=False)
    with pytest.raises(KilledError):
        trainer.fit(*loaders, on_epoch=die)
    assert not (tmp_path / LAST).exists()
