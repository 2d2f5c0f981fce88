"""The loop: phases, checkpoints, resume to the bit, and stopping in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ichfast.amp import Amp, choose_amp
from ichfast.batch import Batch
from ichfast.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from ichfast.errors import CheckpointError, InterruptionError, RecipeError, TrainError
from ichfast.losses import READ_INTERVAL, LossTrace
from ichfast.mixup import mix_up
from ichfast.phases import Phase, TrainConfig
from ichfast.sampler import Sampler
from ichfast.stepper import Stepper
from ichfast.train import Trainer

CPU = Amp("cpu", torch.float32)
NUM_SLICES, BATCH_SIZE = 23, 4


class FakeLoader:
    """Blobs whose brightness is the label: a loader in ten lines."""

    def __init__(self, *, shuffle: bool, poison: int | None = None) -> None:
        self.sampler = Sampler(
            slices_N=np.arange(NUM_SLICES), batch_size=BATCH_SIZE, shuffle=shuffle
        )
        draws = torch.Generator().manual_seed(1)
        self.labels_NK = (torch.rand(NUM_SLICES, 6, generator=draws) < 0.4).float()
        noise = torch.randn(NUM_SLICES, 1, 32, 32, generator=draws)
        self.images = (noise + 2 * self.labels_NK[:, :1, None, None]).half()
        if poison is not None:
            self.images[poison] = math.nan
        self.num_slices = self.sampler.num_slices

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[Batch]:
        order = self.sampler.order(epoch)
        for iteration in range(first_batch, len(self)):
            picked = torch.from_numpy(self.sampler.batch(order, iteration))
            images = self.images[picked].contiguous(memory_format=torch.channels_last)
            yield Batch(images, self.labels_NK[picked], picked)

    def close(self) -> None:
        """Nothing to release."""


class TinyNet(nn.Module):
    """With what a real one has: a body, batch norm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(4, 6)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features = self.norm(self.conv(images_BCHW)).relu().mean(dim=(2, 3))
        logits: Tensor = self.fc(self.dropout(features))
        return logits


@pytest.fixture(autouse=True)
def _split_of_the_tiny_net(monkeypatch: pytest.MonkeyPatch) -> None:
    def body_and_head(model: TinyNet) -> tuple[list[Any], list[Any]]:
        return [*model.conv.parameters()], [
            *model.norm.parameters(),
            *model.fc.parameters(),
        ]

    monkeypatch.setattr("ichfast.stepper.body_and_head", body_and_head)


CONFIG = TrainConfig(
    phases=(
        Phase(epochs=2, lr=1e-2, schedule="one-cycle", start=0.3, optimizer="adam",
              freeze_body=True),
        Phase(epochs=2, lr=1e-2, optimizer="ranger", mixup_alpha=0.4),
    ),
    any_weight=2.0,
    ema_decay=0.9,
)  # fmt: skip


def make_trainer(
    run_dir: Path,
    config: TrainConfig = CONFIG,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    torch.manual_seed(config.seed)
    run_dir.mkdir(exist_ok=True)
    return Trainer(
        Stepper(TinyNet(), config, amp=CPU),
        run_dir=run_dir,
        name_slices=lambda indices: [f"ID_{int(k)}" for k in indices],
        should_stop=should_stop,
    )


def fit(trainer: Trainer, poison: int | None = None) -> list[dict[str, Any]]:
    return trainer.fit(
        FakeLoader(shuffle=True, poison=poison), FakeLoader(shuffle=False)
    )


def without_clock(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "slices_per_s", "wait_share"}
    return [{k: v for k, v in row.items() if k not in timed} for row in history]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_training_lowers_the_loss_and_notes_each_epoch(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("stop_after", [1, 4, 5, 9, 10, 13, 19])
def test_stopping_anywhere_and_resuming_changes_nothing(
    tmp_path: Path, stop_after: int
) -> None:
    undisturbed = make_trainer(tmp_path / "undisturbed")
    history = fit(undisturbed)

    steps = iter(range(1, 1000))
    first = make_trainer(
        tmp_path / "stopped", should_stop=lambda: next(steps) == stop_after
    )
    with pytest.raises(InterruptionError, match="holds the place"):
        fit(first)
    torch.manual_seed(999)  # another process: nothing is left of the first
    second = make_trainer(tmp_path / "stopped")
    second.restore(load_checkpoint(tmp_path / "stopped" / LAST))
    assert without_clock(fit(second)) == without_clock(history)
    for mine, theirs in (
        (second.stepper.model, undisturbed.stepper.model),
        (second.stepper.averaged_model, undisturbed.stepper.averaged_model),
    ):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_an_epoch_lost_to_a_crash_is_trained_again_the_same(tmp_path: Path) -> None:
    class CrashError(Exception):
        pass

    undisturbed = make_trainer(tmp_path / "undisturbed")
    fit(undisturbed)
    steps = iter(range(1, 1000))

    def crash() -> bool:
        if next(steps) == 12:
            raise CrashError
        return False

    with pytest.raises(CrashError):
        fit(make_trainer(tmp_path / "crashed", should_stop=crash))
    second = make_trainer(tmp_path / "crashed")
    second.restore(load_checkpoint(tmp_path / "crashed" / LAST))
    fit(second)
    for name, tensor in second.stepper.model.state_dict().items():
        assert torch.equal(tensor, undisturbed.stepper.model.state_dict()[name]), name


def test_a_loss_that_is_not_finite_names_the_slices_of_its_batch(
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path)
    order = FakeLoader(shuffle=True).sampler.order(0)
    with pytest.raises(TrainError, match=f"ID_{order[5]}.*lower the learning rate"):
        fit(trainer, poison=int(order[5]))
    assert not (tmp_path / LAST).exists()


def test_any_can_count_twice_in_the_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    logits_BK, targets_BK = torch.zeros(1, 6), torch.zeros(1, 6)
    logits_BK[0, 0] = 3.0
    per_class = nn.functional.binary_cross_entropy_with_logits(
        logits_BK, targets_BK, reduction="none"
    )[0]
    expected = (2 * per_class[0] + per_class[1:].sum()) / 7
    torch.testing.assert_close(trainer.stepper.loss(logits_BK, targets_BK), expected)


def test_mixup_mixes_images_and_targets_alike_and_keeps_the_larger_part() -> None:
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


def test_losses_are_read_late_and_all_of_them_in_the_end() -> None:
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


def test_a_checkpoint_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, {"epoch": 1, "weights": torch.ones(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint that ichfast wrote"):
        load_checkpoint(path)
    torch.save({"format": 99}, path)
    with pytest.raises(CheckpointError, match="format 99, this ichfast reads 2"):
        load_checkpoint(path)


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    torch.save(
        {"format": 2, "model": Hostile(tmp_path / "owned")}, tmp_path / "last.pt"
    )
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "owned").exists()
