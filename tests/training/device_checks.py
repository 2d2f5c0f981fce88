"""Checks of steps and loaders on any device.

`tests/gpu/test_training.py` runs them on a GPU, `test_device_checks.py` on the CPU, so
that they are known to run before a GPU is at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from ichfast.evaluation.predictions import probs_NK
from ichfast.export.export import trace
from ichfast.loading.batch import Batch
from ichfast.loading.config import DataConfig
from ichfast.loading.loader import make_loader
from ichfast.models.precision import Amp
from ichfast.predict.ensemble import predict_runs
from ichfast.runs.trained import open_run
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.meters import READ_INTERVAL, LossTrace
from ichfast.training.step import Stepper
from tests.conftest import write_store
from tests.export.test_export import stack_hu, whole_slices
from tests.runs.trainedruns import write_run
from tests.training.tiny_trainer import TinyNet

BATCH_SIZE = 8

FORMATS = [
    (torch.float32, 1e-2, 0.99),
    (torch.float16, 1e-2, 0.99),
    (torch.bfloat16, 2e-2, 0.95),
]
"""For each number format the largest relative error of a loss, and the smallest cosine
between a gradient and that of float32 on a CPU. A GPU multiplies float32 as TF32, which
has the precision of float16; bfloat16 has an eighth of that."""

MakeModel = Callable[[], nn.Module]


def plain_net() -> nn.Module:
    """`TinyNet` without dropout, whose draws differ between devices."""
    net = TinyNet()
    net.dropout.p = 0.0
    return net


def make_stepper(
    make_model: MakeModel,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    phase: Phase,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    **settings: Any,
) -> Stepper:
    """A stepper at the start of a phase; the same weights on every device."""
    torch.manual_seed(1)
    config = TrainConfig(phases=(phase,), **settings)
    model = make_model().to(device)
    stepper = Stepper(model, config, amp=Amp(device.type, dtype), ranks=ranks)
    # So small that no gradient of these networks overflows: no step is skipped.
    scaler = stepper._scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 256.0})
    stepper.start_phase(phase, 1000)
    return stepper


def draw_batch(seed: int, device: torch.device) -> Batch:
    """Noise and labels, drawn on the CPU."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH_SIZE, 1, 64, 64, generator=draws).half()
    images = images.contiguous(memory_format=torch.channels_last)
    labels = (torch.rand(BATCH_SIZE, 6, generator=draws) < 0.4).float()
    return Batch(images.to(device), labels.to(device), torch.arange(BATCH_SIZE))


def take_steps(stepper: Stepper, batches: list[Batch], first: int = 0) -> Tensor:
    """Losses of one step per batch, on the device."""
    losses = []
    for step, batch in enumerate(batches, first):
        losses.append(stepper.add(batch, epoch=0, iteration=step))
        stepper.update(step)
    return torch.stack(losses)


def check_format(
    make_model: MakeModel,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_loss_error: float,
    min_cosine: float,
) -> None:
    """Compare steps with those in float32 on the CPU.

    Args:
        make_model: makes a model without dropout.
        device: where the format is checked.
        dtype: the format.
        max_loss_error: largest relative error of the losses of four steps.
        min_cosine: smallest cosine between the two gradients of the first batch.
    """
    phase = Phase(epochs=1, lr=1e-4, optimizer="adam")
    losses, gradients = [], []
    for where, form in ((torch.device("cpu"), torch.float32), (device, dtype)):
        stepper = make_stepper(make_model, where, dtype=form, phase=phase)
        batches = [draw_batch(seed, where) for seed in range(4)]
        stepper.add(batches[0], epoch=0, iteration=0)
        grads = [parameter.grad for parameter in stepper.model.parameters()]
        gradients.append(
            torch.cat([g.flatten().double().cpu() for g in grads if g is not None])
        )
        stepper._phase.optimizer.zero_grad()
        losses.append(take_steps(stepper, batches).double().cpu())
    torch.testing.assert_close(losses[1], losses[0], rtol=max_loss_error, atol=0.0)
    expected, found = gradients
    assert nn.functional.cosine_similarity(found, expected, dim=0) > min_cosine


def check_waits(
    make_model: MakeModel,
    device: torch.device,
    refuse_waits: Callable[[], AbstractContextManager[None]],
    *,
    optimizer: str,
    dtype: torch.dtype,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Stepper:
    """Take steps under a context that refuses to wait for the device.

    Args:
        make_model: makes a model.
        device: where it trains.
        refuse_waits: makes the context.
        optimizer: one of `OPTIMIZERS`.
        dtype: number format.
        ranks: the processes that train together.

    Returns:
        The stepper after its steps.
    """
    phase = Phase(epochs=1, lr=1e-3, optimizer=optimizer, mixup_alpha=0.4)
    stepper = make_stepper(
        make_model, device, dtype=dtype, phase=phase, ema_decay=0.9, ranks=ranks
    )
    batches = [draw_batch(seed + 100 * ranks.rank, device) for seed in range(8)]
    warm = take_steps(stepper, batches[:1])
    with refuse_waits():
        losses = take_steps(stepper, batches[1:], first=1)
    assert torch.cat([warm, losses]).isfinite().all()
    return stepper


@contextmanager
def refuse_gpu_waits() -> Iterator[None]:
    """Torch raises an error where the host would wait for the GPU."""
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_ranks(ranks: Ranks, device_type: str) -> None:
    """Steps of several ranks do not wait, and end with one and the same model."""
    on_gpu = device_type == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
    stepper = check_waits(
        plain_net,
        device or torch.device("cpu"),
        refuse_gpu_waits if on_gpu else nullcontext,
        optimizer="ranger",
        dtype=torch.bfloat16,
        ranks=ranks,
    )
    weights = nn.utils.parameters_to_vector(stepper.model.parameters())
    first, *others = ranks.gather(weights.tolist())
    assert len(others) == ranks.world_size - 1
    assert all(other == first for other in others)


def check_memory(
    store: Store, device: torch.device, allocated: Callable[[], int]
) -> None:
    """Train on 200 batches of a real loader: the later ones need no more memory.

    Args:
        store: a store of a few slices.
        device: where to train.
        allocated: bytes of memory held.
    """
    phase = Phase(epochs=1, lr=1e-3, mixup_alpha=0.4)
    stepper = make_stepper(plain_net, device, phase=phase, ema_decay=0.9)
    losses = LossTrace(device)
    slices_N = np.tile(np.arange(12), 67)
    config = DataConfig(size=32, batch_size=4, level=256)
    held = {}
    with make_loader(
        store, slices_N, config, shuffle=True, device=device.type
    ) as loader:
        for step, batch in enumerate(loader.epoch(0)):
            losses.add(stepper.add(batch, epoch=0, iteration=step), batch.indices_B)
            stepper.update(step)
            if (step + 1) % READ_INTERVAL == 0:
                losses.read_late()
            if step + 1 in (50, 190):  # both ten steps after a read of the losses
                held[step + 1] = allocated()
    assert math.isfinite(losses.mean())
    # The loader may be some batches ahead. A number lost in each step, which takes 512
    # bytes of a GPU, takes more.
    assert held[190] - held[50] < 4 * batch.images_BCHW.nbytes


def check_export(
    tmp_path: Path, store_path: Path, device: torch.device, *, atol: float
) -> None:
    """Compare the probabilities of an exported model and of `ichfast predict`.

    Args:
        tmp_path: where the run and another store go.
        store_path: what the run trained on.
        device: where both compute.
        atol: largest difference.
    """
    run = write_run(
        tmp_path / "run",
        store_path,
        "train.amp=fp32",
        size=64,
        arch="efficientnet-b0",
    )
    write_store(tmp_path / "store", plan={"listing": "another"})
    table = predict_runs([run], device=device, store_path=tmp_path / "store")
    with Store(tmp_path / "store") as store:
        positions = whole_slices(store)
        hu_BHW = stack_hu(store, positions).to(device)
    program = move_to_device_pass(trace(open_run(run)), str(device))
    with torch.inference_mode():
        found = program.module()(hu_BHW).cpu().numpy()
    predicted = probs_NK(table)[positions]
    assert predicted.std(axis=0).max() > 0.01  # not the same for all slices
    np.testing.assert_allclose(found, predicted, atol=atol)
