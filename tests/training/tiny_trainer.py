"""A tiny network, a loader of blobs, and runs of them that take seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ichfast.loading.batch import Batch
from ichfast.loading.sampler import Sampler
from ichfast.models.precision import Amp
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import PATIENTS, SETTINGS, load_last
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.history import History
from ichfast.training.step import Stepper
from ichfast.training.trainer import Trainer

CPU = Amp("cpu", torch.float32)
NUM_SLICES, BATCH_SIZE = 23, 4

CONFIG = TrainConfig(
    phases=(
        Phase(epochs=2, lr=1e-2, schedule="one-cycle", start=0.3, optimizer="adam",
              freeze_body=True),
        Phase(epochs=2, lr=1e-2, optimizer="ranger", mixup_alpha=0.4),
    ),
    any_weight=2.0,
    ema_decay=0.9,
)  # fmt: skip
"""Settings with all parts of a run: phases, mixup, Lookahead, averaged weights."""


class FakeLoader:
    """Gives noise that is brighter where the first label is 1.

    Args:
        shuffle: True to train.
        poison: a slice whose pixels are NaN.
        batch_size: slices in a batch.
        ranks: this process among all.
        missing: share of the labels that is missing; each slice keeps one.
        missing_class: a class without labels.
    """

    def __init__(
        self,
        *,
        shuffle: bool,
        poison: int | None = None,
        batch_size: int = BATCH_SIZE,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
        missing: float = 0.0,
        missing_class: int | None = None,
    ) -> None:
        self.sampler = Sampler(
            slices_N=np.arange(NUM_SLICES),
            batch_size=batch_size,
            shuffle=shuffle,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        draws = torch.Generator().manual_seed(1)
        self.labels_NK = (torch.rand(NUM_SLICES, 6, generator=draws) < 0.4).float()
        noise = torch.randn(NUM_SLICES, 1, 32, 32, generator=draws)
        self.images = (noise + 2 * self.labels_NK[:, :1, None, None]).half()
        is_missing_NK = torch.rand(NUM_SLICES, 6, generator=draws) < missing
        is_missing_NK[range(NUM_SLICES), np.arange(NUM_SLICES) % 6] = False
        self.labels_NK[is_missing_NK] = math.nan
        if missing_class is not None:
            self.labels_NK[:, missing_class] = math.nan
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
    """A network with the parts of a real one: body, batch norm, dropout and head.

    Args:
        looks_at_batch: False replaces batch norm and dropout, so that the logits of a
            slice do not depend on the other slices of its batch.
    """

    def __init__(self, *, looks_at_batch: bool = True) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.ones(1))
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4) if looks_at_batch else nn.GroupNorm(2, 4)
        self.dropout = nn.Dropout(0.2 if looks_at_batch else 0.0)
        self.fc = nn.Linear(4, 6)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features = self.norm(self.conv(images_BCHW - self.mean)).relu().mean(dim=(2, 3))
        logits: Tensor = self.fc(self.dropout(features))
        return logits

    def get_classifier(self) -> nn.Module:
        return self.fc


def make_trainer(
    run_dir: Path,
    config: TrainConfig = CONFIG,
    *,
    looks_at_batch: bool = True,
    amp: Amp = CPU,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    should_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    torch.manual_seed(config.seed)
    run_dir.mkdir(exist_ok=True)
    net = TinyNet(looks_at_batch=looks_at_batch)
    return Trainer(
        Stepper(net, config, amp=amp, ranks=ranks),
        run_dir=run_dir,
        name_slices=lambda indices: [f"ID_{int(k)}" for k in indices],
        saved_with={SETTINGS: "", PATIENTS: ""},
        should_stop=should_stop,
    )


def fit(
    trainer: Trainer,
    *,
    poison: int | None = None,
    batch_size: int = BATCH_SIZE,
    missing: float = 0.0,
    missing_class: int | None = None,
) -> History:
    give = partial(
        FakeLoader,
        batch_size=batch_size,
        ranks=trainer.stepper.ranks,
        missing=missing,
        missing_class=missing_class,
    )
    return trainer.fit(give(shuffle=True, poison=poison), give(shuffle=False))


def without_clock(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = {"seconds", "slices_per_s", "wait_share"}
    return [{k: v for k, v in row.items() if k not in timed} for row in history]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_run(first: Trainer, second: Trainer) -> None:
    """Equal to the bit: history, weights, averaged weights."""
    assert without_clock(first.history) == without_clock(second.history)
    for mine, theirs in (
        (first.stepper.model, second.stepper.model),
        (first.stepper.averaged_model, second.stepper.averaged_model),
    ):
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name


def resumed_trainer(run_dir: Path, config: TrainConfig = CONFIG, **how: Any) -> Trainer:
    """A trainer restored from the last checkpoint of a run."""
    trainer = make_trainer(run_dir, config, **how)
    torch.manual_seed(999)  # as in another process
    trainer.restore(load_last(run_dir))
    return trainer
