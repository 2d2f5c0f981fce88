"""The loss is the mean over the known labels, and torch's own mean if all are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ichfast.augment.mixup import mix_up
from ichfast.training.config import TrainConfig
from ichfast.training.inference import predict_logits
from ichfast.training.loss import known_loss, with_bags
from tests.training.tiny_trainer import (
    CONFIG,
    CPU,
    FakeLoader,
    assert_same_run,
    fit,
    make_trainer,
    resumed_trainer,
    without_clock,
)

WEIGHT_K = torch.tensor([12.0, 6.0, 6.0, 6.0, 6.0, 6.0]) / 7


def a_batch(seed: int, num_slices: int = 23) -> tuple[Tensor, Tensor]:
    """Logits and complete targets, some of them mixed."""
    draws = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_slices, 6, generator=draws)
    targets = torch.rand(num_slices, 6, generator=draws)
    targets[::2] = targets[::2].round()
    return logits.requires_grad_(), targets


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def test_the_loss_is_the_weighted_mean_over_the_known_targets() -> None:
    logits, targets = a_batch(1)
    targets[torch.rand(23, 6, generator=torch.Generator().manual_seed(2)) < 0.6] = (
        math.nan
    )
    total = weights = 0.0
    expected_gradient = torch.zeros(23, 6)
    for b in range(23):
        for k in range(6):
            x, w = float(logits.detach()[b, k]), float(WEIGHT_K[k])
            y = float(targets[b, k])
            if not math.isnan(y):
                p = 1 / (1 + math.exp(-x))
                total -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
                weights += w
                expected_gradient[b, k] = w * (p - y)
    loss = known_loss(logits, targets, WEIGHT_K)
    assert float(loss.detach()) == pytest.approx(total / weights, rel=1e-5)
    torch.testing.assert_close(gradient(loss, logits), expected_gradient / weights)


@pytest.mark.parametrize("num_slices", [1, 4, 7, 23, 64])
@pytest.mark.parametrize("any_weight", [1.0, 2.0, 0.3])
def test_complete_targets_give_the_bits_of_torchs_mean(
    num_slices: int, any_weight: float
) -> None:
    weight_K = torch.tensor([any_weight, 1.0, 1.0, 1.0, 1.0, 1.0])
    weight_K = weight_K / weight_K.mean()
    for seed in range(20):
        logits, targets = a_batch(seed, num_slices)
        loss = known_loss(logits, targets, weight_K)
        expected = nn.BCEWithLogitsLoss(weight=weight_K)(logits, targets)
        assert torch.equal(loss, expected)
        assert torch.equal(gradient(loss, logits), gradient(expected, logits))


@pytest.mark.parametrize("scale", [1.0, 65_536.0])
def test_a_batch_without_a_known_target_gives_0_and_a_gradient_of_0(
    scale: float,
) -> None:
    logits, targets = a_batch(3)
    loss = scale * known_loss(logits, torch.full_like(targets, math.nan), WEIGHT_K)
    assert float(loss.detach()) == 0.0
    assert torch.equal(gradient(loss, logits), torch.zeros(23, 6))


def test_logits_that_are_not_finite_show_in_the_loss_also_without_a_target() -> None:
    logits = torch.full((2, 6), math.nan)
    targets = torch.full((2, 6), math.nan)
    assert not known_loss(logits, targets, WEIGHT_K).isfinite()


def test_a_target_mixed_with_a_missing_one_is_missing() -> None:
    targets = (torch.arange(64.0).reshape(8, 8) % 2)[:, :6].clone()
    targets[[1, 4], [2, 5]] = math.nan
    marks = torch.eye(8)[:, :, None, None]  # an image shows which slices are in it
    images, mixed = mix_up(marks, targets, alpha=0.4, seed=(0,))
    for found, image in zip(mixed, images[:, :, 0, 0], strict=True):
        parts = targets[image > 0]
        assert torch.equal(found.isnan(), parts.isnan().any(dim=0))
    assert mixed.isnan().sum() > 2


def test_a_missing_partner_counts_also_with_a_share_of_0() -> None:
    targets = torch.zeros(8, 6)
    targets[1] = math.nan
    images, mixed = mix_up(
        torch.eye(8)[:, :, None, None], targets, alpha=1e-9, seed=(0,)
    )
    assert torch.equal(images[:, :, 0, 0], torch.eye(8))
    assert mixed.isnan().all(dim=1).sum() == 2


PLAIN = TrainConfig(phases=CONFIG.phases, any_weight=2.0)


def test_training_with_complete_labels_has_the_bits_of_torchs_mean(
    tmp_path: Path,
) -> None:
    found = make_trainer(tmp_path / "found")
    fit(found)
    expected = make_trainer(tmp_path / "expected")
    weight_K = expected.stepper.loss.keywords["weight_K"]
    expected.stepper.loss = nn.BCEWithLogitsLoss(weight=weight_K)  # type: ignore[assignment]
    fit(expected)
    assert_same_run(found, expected)


def test_training_with_missing_labels_lowers_the_loss_and_resumes_to_the_bit(
    tmp_path: Path,
) -> None:
    whole = make_trainer(tmp_path / "whole")
    history = fit(whole, missing=0.7)
    assert all(math.isfinite(row["valid_loss"]) for row in history)
    assert history[-1]["valid_loss"] < history[0]["valid_loss"]
    config = replace(CONFIG, checkpoint_minutes=0.0)
    steps = iter(range(100))
    stopped = make_trainer(
        tmp_path / "stopped", config, should_stop=lambda: next(steps) == 12
    )
    with pytest.raises(Exception, match="stopped in epoch"):
        fit(stopped, missing=0.7)
    resumed = resumed_trainer(tmp_path / "stopped", config)
    fit(resumed, missing=0.7)
    assert_same_run(resumed, whole)


def test_a_class_that_nothing_labels_leaves_its_head_as_it_was(tmp_path: Path) -> None:
    config = TrainConfig(
        phases=(replace(CONFIG.phases[1], mixup_alpha=0.0, weight_decay=0.0),)
    )
    trainer = make_trainer(tmp_path, config)
    before = trainer.stepper.model.get_parameter("fc.weight").detach().clone()
    fit(trainer, missing_class=3)
    after = trainer.stepper.model.get_parameter("fc.weight").detach()
    is_same_K = (before == after).all(dim=1)
    assert is_same_K.tolist() == [k == 3 for k in range(6)]


def test_batches_and_ranks_are_averaged_with_equal_weight(tmp_path: Path) -> None:
    """A step's gradient is the mean over its batches of means over known targets."""
    stepper = make_trainer(tmp_path, replace(PLAIN, accumulate=2)).stepper
    batches = [a_batch(seed, 4) for seed in (1, 2)]
    batches[0][1][:, 1:] = math.nan  # a sixth as many known targets
    halves = [gradient(stepper.loss(*batch) / 2, batch[0]) for batch in batches]
    for half, (logits, targets) in zip(halves, batches, strict=True):
        is_known = ~targets.isnan()
        weight = WEIGHT_K * is_known
        slope = (logits.sigmoid() - targets.nan_to_num()) * weight
        torch.testing.assert_close(half, slope / weight.sum() / 2)


def test_validation_takes_the_known_labels(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    rows = without_clock(fit(trainer, missing=0.7))
    loader = FakeLoader(shuffle=False, missing=0.7)
    _, logits, targets = predict_logits(trainer.stepper.averaged_model, loader, CPU)
    is_known = ~targets.isnan()
    probs, labels = logits[is_known].double().sigmoid(), targets[is_known].double()
    losses = -(labels * probs.log() + (1 - labels) * (1 - probs).log())
    weights = torch.tensor([2.0, 1, 1, 1, 1, 1]).expand(targets.shape)[is_known]
    assert 0 < len(losses) < targets.numel() / 2
    assert rows[-1]["valid_loss"] == pytest.approx(float(losses.mean()))
    assert rows[-1]["valid_weighted_log_loss"] == pytest.approx(
        float((weights * losses).sum() / weights.sum())
    )
    is_right = (probs > 0.5) == (labels > 0.5)
    assert rows[-1]["valid_accuracy"] == pytest.approx(float(is_right.double().mean()))


def test_the_logit_of_a_bag_is_the_maximum_of_its_slices() -> None:
    logits, targets = a_batch(4, 8)
    targets[4:] = math.nan
    bag_targets = torch.full((2, 6), math.nan)
    bag_targets[1] = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    all_targets = torch.cat([targets, bag_targets])
    loss = known_loss(with_bags(logits, 2), all_targets, WEIGHT_K)
    cells = [
        (logits[b, k], targets[b, k], WEIGHT_K[k]) for b in range(4) for k in range(6)
    ]
    cells += [(logits[4:, k].max(), bag_targets[1, k], WEIGHT_K[k]) for k in range(6)]
    losses = [
        weight * nn.functional.binary_cross_entropy_with_logits(logit, target)
        for logit, target, weight in cells
    ]
    expected = torch.stack(losses).sum() / sum(weight for *_, weight in cells)
    torch.testing.assert_close(loss, expected)
    found = gradient(known_loss(with_bags(logits, 2), all_targets, WEIGHT_K), logits)
    torch.testing.assert_close(found, gradient(expected, logits))
    assert (found[4:] != 0).sum() == 6  # of each class the highest slice only
