"""On a GPU: compiled steps, CUDA graphs, the device's clock, and ranks over NCCL."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ichfast.loading.batch import Batch
from ichfast.models.build import build_model, synchronize_batch_norm
from ichfast.models.config import ARCHS
from ichfast.models.precision import Amp
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.meters import WaitMeter
from ichfast.training.profiler import PARTS, SUMMARY, TRACE, Profile
from ichfast.training.step import Stepper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda")
PHASE = Phase(epochs=1, lr=1e-3, optimizer="adam")
CONFIG = TrainConfig(phases=(PHASE,), ema_decay=0.9)
NUM_STEPS = 20


def make_stepper(config: TrainConfig) -> Stepper:
    torch.manual_seed(1)
    stepper = Stepper(
        build_model("resnext50").to(DEVICE), config, amp=Amp("cuda", torch.float32)
    )
    stepper.start_phase(PHASE, NUM_STEPS)
    return stepper


def take_steps(stepper: Stepper) -> list[float]:
    draws = torch.Generator(DEVICE).manual_seed(2)
    losses = []
    for step in range(NUM_STEPS):
        images = torch.randn(8, 1, 64, 64, device=DEVICE, generator=draws)
        targets = (torch.rand(8, 6, device=DEVICE, generator=draws) < 0.4).float()
        batch = Batch(images.half(), targets, torch.arange(8))
        losses.append(stepper.add(batch, epoch=0, iteration=step))
        stepper.update(step)
    return torch.stack(losses).tolist()


@pytest.mark.parametrize("setting", ["compile", "cuda_graphs"])
def test_faster_steps_are_the_same_steps(setting: str) -> None:
    torch._dynamo.reset()
    plain = take_steps(make_stepper(CONFIG))
    faster = make_stepper(replace(CONFIG, **{setting: True}))  # type: ignore[arg-type]
    # float32 sums in another order, and twenty steps that build on each other.
    np.testing.assert_allclose(take_steps(faster), plain, rtol=2e-2)
    assert faster._phase.network.forward is not faster.model


def test_waiting_is_read_from_the_devices_clock() -> None:
    meter = WaitMeter(DEVICE)
    torch.cuda.synchronize()
    with meter.waiting():
        time.sleep(0.05)  # the device idles
    torch.cuda.synchronize()
    assert 0.04 < meter.seconds() < 0.2
    torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
    with meter.waiting():
        time.sleep(0.001)  # the device is busy all the while
    torch.cuda.synchronize()
    assert meter.seconds() < 0.2


def test_a_profile_shows_kernels_and_parts(tmp_path: Path) -> None:
    stepper = make_stepper(CONFIG)
    stepper.spans = Profile(DEVICE, tmp_path)
    take_steps(stepper)
    stepper.spans.close()
    assert '"cat": "kernel"' in (tmp_path / TRACE).read_text()
    assert all(part in (tmp_path / SUMMARY).read_text() for part in PARTS)


def test_batch_norm_of_every_backbone_can_be_shared() -> None:
    for arch in ARCHS:
        model = synchronize_batch_norm(build_model(arch)).to(DEVICE)
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
        assert model(torch.zeros(2, 1, 64, 64, device=DEVICE)).shape == (2, 6)
