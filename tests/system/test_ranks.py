"""Several ranks on one machine make one run, with one writer and without hanging."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ichfast.errors import CheckpointError, InterruptionError, TrainError
from ichfast.models.build import body_and_head, build_model, synchronize_batch_norm
from ichfast.models.config import ARCHS
from ichfast.system.ranks import Ranks, join_ranks, was_restarted
from ichfast.training.checkpoint import BEST, LAST, load_checkpoint
from ichfast.training.config import Phase, TrainConfig
from tests.runs.rank_processes import run_ranks
from tests.training.tiny_trainer import (
    FakeLoader,
    fit,
    make_trainer,
    resumed_trainer,
    without_clock,
)

PLAIN = TrainConfig(
    phases=(Phase(epochs=1, lr=1e-2, optimizer="adam", freeze_body=True),
            Phase(epochs=2, lr=1e-2)),
    any_weight=2.0,
    ema_decay=0.9,
)  # fmt: skip
"""Without mixup, so that with `looks_at_batch=False` only the whole step counts."""


def run_of(run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    state = load_checkpoint(run_dir / LAST)
    return without_clock(state["history"]), state["model"] | state["trained"]


def train(ranks: Ranks, run_dir: Path, batch_size: int, accumulate: int) -> None:
    config = replace(PLAIN, accumulate=accumulate)
    trainer = make_trainer(run_dir, config, looks_at_batch=False, ranks=ranks)
    fit(trainer, batch_size=batch_size)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (2, 2)])
def test_two_ranks_train_as_one_does_on_the_whole_batch(
    tmp_path: Path, batch_size: int, accumulate: int
) -> None:
    train(Ranks(), tmp_path / "one", 8, 1)
    two = tmp_path / "two"
    assert run_ranks(2, train, two, batch_size, accumulate) == ["", ""]
    (history, weights), (expected, expected_weights) = map(
        run_of, (two, tmp_path / "one")
    )
    assert len(history) == 3
    for row, wanted in zip(history, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected_weights[name])
    assert {path.name for path in two.iterdir()} == {LAST, BEST, "last.previous.pt"}


def check_mean_of_means(ranks: Ranks, run_dir: Path) -> None:
    config = replace(PLAIN, accumulate=2)
    trainer = make_trainer(run_dir, config, looks_at_batch=False, ranks=ranks)
    stepper = trainer.stepper
    stepper.start_phase(PLAIN.phases[1], 1)
    batches = list(FakeLoader(shuffle=True, ranks=ranks, missing=0.8).epoch(0))[:2]
    counts = [int((~batch.targets_BK.isnan()).sum()) for batch in batches]
    alone = []
    for batch in batches:
        logits = stepper.model(batch.images_BCHW.float())
        parameters = list(stepper.model.parameters())
        loss = stepper.loss(logits, batch.targets_BK)
        alone.append([each.tolist() for each in torch.autograd.grad(loss, parameters)])
    for iteration, batch in enumerate(batches):
        stepper.add(batch, epoch=0, iteration=iteration)
    everywhere = [gradients for rank in ranks.gather(alone) for gradients in rank]
    assert len(everywhere) == 4
    assert ranks.gather(counts)[0] != ranks.gather(counts)[1]
    for number, parameter in enumerate(stepper.model.parameters()):
        expected = torch.tensor([each[number] for each in everywhere]).mean(dim=0)
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.slow
def test_batches_of_all_ranks_count_alike_with_different_known_labels(
    tmp_path: Path,
) -> None:
    assert run_ranks(2, check_mean_of_means, tmp_path) == ["", ""]


def check_parts(ranks: Ranks) -> None:
    for shuffle in (True, False):
        loader = FakeLoader(shuffle=shuffle, ranks=ranks)
        mine = np.concatenate([batch.indices_B.numpy() for batch in loader.epoch(3)])
        together = np.concatenate(ranks.gather(mine))
        assert len(set(together)) == len(together) == (16 if shuffle else 23)
    assert ranks.agree([ranks.rank == 1, False, True]) == [True, False, True]
    assert ranks.gather(ranks.rank) == [0, 1]
    statistics = torch.nn.BatchNorm1d(2)
    mean = statistics.get_buffer("running_mean")
    mean += ranks.rank
    ranks.share_buffers(statistics)
    assert mean.tolist() == [0, 0]


@pytest.mark.slow
def test_ranks_have_disjoint_parts_and_agree() -> None:
    assert run_ranks(2, check_parts) == ["", ""]


def stop_and_resume(ranks: Ranks, run_dir: Path) -> None:
    fit(make_trainer(run_dir / "whole", ranks=ranks), batch_size=2)
    steps = iter(range(1, 1000))
    trainer = make_trainer(  # the signal comes to one of them only
        run_dir / "stopped",
        ranks=ranks,
        should_stop=lambda: next(steps) == 8 and ranks.rank == 1,
    )
    with pytest.raises(InterruptionError):
        fit(trainer, batch_size=2)
    assert next(steps) == 9
    ranks.gather(None)  # the checkpoint is there
    fit(resumed_trainer(run_dir / "stopped", ranks=ranks), batch_size=2)


@pytest.mark.slow
def test_a_run_of_two_ranks_resumes_to_the_bit(tmp_path: Path) -> None:
    assert run_ranks(2, stop_and_resume, tmp_path) == ["", ""]
    whole, stopped = (run_of(tmp_path / name) for name in ("whole", "stopped"))
    assert stopped[0] == whole[0]
    for name, tensor in stopped[1].items():
        assert torch.equal(tensor, whole[1][name]), name
    with pytest.raises(CheckpointError, match=r"trained by 2 rank\(s\), now .* 1;"):
        resumed_trainer(tmp_path / "whole")


def lose_a_rank(ranks: Ranks, run_dir: Path, end: str) -> None:
    steps = iter(range(1, 1000))

    def die() -> bool:
        if next(steps) == 3 and ranks.rank == 1:
            if end == "killed":
                os._exit(9)
            raise TrainError("its reason")
        return False

    fit(make_trainer(run_dir, ranks=ranks, should_stop=die), batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "its_own"), [("killed", None), ("failed", "TrainError: rank 1: its reason")]
)
def test_a_rank_that_dies_ends_the_others_with_a_message(
    tmp_path: Path, end: str, its_own: str | None
) -> None:
    others, own = run_ranks(2, lose_a_rank, tmp_path, end)
    assert own == its_own
    assert others is not None
    assert others.startswith("TrainError: rank 0 lost another rank, whose own message")
    assert others.endswith("start again with --resume")


def meet_poison(ranks: Ranks, run_dir: Path) -> None:
    order = FakeLoader(shuffle=True, batch_size=2, ranks=Ranks(1, 2)).sampler.order(0)
    with pytest.raises(TrainError) as raised:
        fit(make_trainer(run_dir, ranks=ranks), poison=int(order[2]), batch_size=2)
    # All weights are spoilt by then; the batch that began it is on rank 1.
    named = f"ID_{order[2]}, ID_{order[3]}" if ranks.rank == 1 else "held "
    assert named in str(raised.value)
    assert not (run_dir / LAST).exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_stops_all(tmp_path: Path) -> None:
    assert run_ranks(2, meet_poison, tmp_path) == ["", ""]


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with join_ranks("cpu") as ranks:
        assert ranks == Ranks()
    assert ranks.writes
    assert ranks.agree([True, False]) == [True, False]
    assert ranks.gather("mine") == ["mine"]


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_job_that_was_started_again_is_known(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert not was_restarted()
    monkeypatch.setenv(name, "0")
    assert not was_restarted()
    monkeypatch.setenv(name, "1")
    assert was_restarted()


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_batch_norm_is_the_same_network(arch: str) -> None:
    torch.manual_seed(0)
    model = build_model(arch).eval()
    images_BCHW = torch.randn(2, 1, 64, 64)
    names = set(model.state_dict())
    with torch.inference_mode():
        expected = model(images_BCHW)
        shared = synchronize_batch_norm(model)
        assert torch.equal(shared(images_BCHW), expected)
    norms = [
        m for m in shared.modules() if isinstance(m, nn.modules.batchnorm._NormBase)
    ]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert set(shared.state_dict()) == names
    body, trained = body_and_head(shared)
    assert len(trained) > 2 * len(norms)
    assert len(body) + len(trained) == len(list(shared.parameters()))
