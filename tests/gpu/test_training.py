"""On a GPU: number formats, compiled steps, waits, memory, ranks over NCCL, export.

`tests/training/test_device_checks.py` runs the same checks on the CPU.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ichfast.models.build import build_model, synchronize_batch_norm
from ichfast.models.config import ARCHS
from ichfast.store.store import Store
from ichfast.training.config import Phase
from ichfast.training.meters import WaitMeter
from ichfast.training.optimizers import nvidia_apex
from ichfast.training.profiler import PARTS, PROFILED_STEPS, SUMMARY, TRACE, Profile
from ichfast.training.step import Stepper
from tests.runs.rank_processes import run_ranks
from tests.training.device_checks import (
    FORMATS,
    check_export,
    check_format,
    check_memory,
    check_ranks,
    check_waits,
    draw_batch,
    make_stepper,
    refuse_gpu_waits,
    take_steps,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda")
PHASE = Phase(epochs=1, lr=1e-3, optimizer="adam")
RESNEXT = partial(build_model, "resnext50")


def resnext_stepper(*, compile: bool = False, cuda_graphs: bool = False) -> Stepper:
    return make_stepper(
        RESNEXT,
        DEVICE,
        phase=PHASE,
        ema_decay=0.9,
        compile=compile,
        cuda_graphs=cuda_graphs,
    )


@pytest.mark.parametrize("arch", ["resnext50", "xresnet50-attn"])
@pytest.mark.parametrize(("dtype", "max_loss_error", "min_cosine"), FORMATS)
def test_steps_in_each_format_agree_with_float32_on_the_cpu(
    arch: str, dtype: torch.dtype, max_loss_error: float, min_cosine: float
) -> None:
    check_format(
        partial(build_model, arch),
        DEVICE,
        dtype,
        max_loss_error=max_loss_error,
        min_cosine=min_cosine,
    )


@pytest.mark.parametrize("setting", ["compile", "cuda_graphs"])
def test_faster_steps_are_the_same_steps(setting: str) -> None:
    torch._dynamo.reset()
    batches = [draw_batch(seed, DEVICE) for seed in range(20)]
    plain = take_steps(resnext_stepper(), batches).tolist()
    faster = resnext_stepper(**{setting: True})
    # float32 sums in another order, and twenty steps that build on each other.
    np.testing.assert_allclose(take_steps(faster, batches).tolist(), plain, rtol=2e-2)
    assert faster._phase.network.forward is not faster.model
    for copied, buffer in zip(
        faster.averaged_model.buffers(), faster.model.buffers(), strict=True
    ):
        assert torch.equal(copied, buffer)


@pytest.mark.parametrize(
    ("arch", "optimizer", "dtype"),
    [
        *((arch, "ranger", torch.bfloat16) for arch in ARCHS),
        ("resnext50", "ranger", torch.float32),
        ("resnext50", "radam", torch.bfloat16),
        ("resnext50", "lamb", torch.bfloat16),
        ("resnext50", "adam", torch.float16),
    ],
)
def test_a_step_never_waits_for_the_gpu(
    arch: str, optimizer: str, dtype: torch.dtype
) -> None:
    if dtype is torch.float16 and nvidia_apex() is not None:
        pytest.skip("with float16, apex's Adam waits and torch's does not")
    check_waits(
        partial(build_model, arch),
        DEVICE,
        refuse_gpu_waits,
        optimizer=optimizer,
        dtype=dtype,
    )


def test_a_wait_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="synchronizing"):
        check_waits(
            RESNEXT,
            DEVICE,
            refuse_gpu_waits,
            optimizer="ranger",
            dtype=torch.float16,  # reads whether a gradient overflowed
        )
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_steps_of_two_ranks_never_wait_and_end_with_one_model() -> None:
    assert run_ranks(2, check_ranks, "cuda", device="cuda") == ["", ""]


def test_memory_stays_flat(tiny_store: Store) -> None:
    check_memory(tiny_store, DEVICE, torch.cuda.memory_allocated)


def test_an_exported_model_gives_the_predictions(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    # The CPU stays within 1e-4; here the resampling of DALI is another kernel's.
    check_export(tmp_path, tiny_store_path, DEVICE, atol=2e-3)


def test_waiting_is_read_from_the_devices_clock() -> None:
    waited = []
    for busy_cycles in (0, 2_000_000_000):  # idle; busy for about a second
        meter = WaitMeter(DEVICE)
        torch.cuda.synchronize()
        torch.cuda._sleep(busy_cycles)  # type: ignore[no-untyped-call]
        with meter.waiting():
            time.sleep(0.05)
        torch.cuda.synchronize()
        waited.append(meter.seconds())
    # Only an idle device waits.
    assert waited[1] < waited[0] / 2


def test_a_profile_shows_kernels_and_parts(tmp_path: Path) -> None:
    stepper = resnext_stepper()
    stepper.spans = Profile(DEVICE, tmp_path)
    take_steps(stepper, [draw_batch(seed, DEVICE) for seed in range(PROFILED_STEPS)])
    stepper.spans.close()
    assert '"cat": "kernel"' in (tmp_path / TRACE).read_text()
    assert all(part in (tmp_path / SUMMARY).read_text() for part in PARTS)


def test_batch_norm_of_every_backbone_can_be_shared() -> None:
    for arch in ARCHS:
        model = synchronize_batch_norm(build_model(arch)).to(DEVICE)
        assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
        assert model(torch.zeros(2, 1, 64, 64, device=DEVICE)).shape == (2, 6)
