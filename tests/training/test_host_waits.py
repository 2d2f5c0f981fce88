"""Nothing in a step makes the host wait for the device, apart from what is named.

A step runs on the meta device, which stands in for a GPU: torch computes shapes only,
and refuses every operation that reads a number back. Tensors of the host stay real.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ichfast.loading.batch import Batch
from ichfast.models.build import build_model
from ichfast.models.config import ARCHS
from ichfast.models.precision import Amp
from ichfast.training.config import Phase, TrainConfig
from ichfast.training.optimizers import OPTIMIZERS
from ichfast.training.step import Stepper
from tests.training.tiny_trainer import TinyNet

META = torch.device("meta")
NUM_STEPS = 7
"""RAdam rectifies and Lookahead synchronizes from step 6 on."""


class OnMeta(Amp):
    """A number format without autocast, whose casts torch does not do on meta."""

    def autocast(self) -> Any:
        """A context that casts nothing."""
        return nullcontext()


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at copies from the host that may wait, and at slow foreach calls."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pinned: set[int] = set()
        """Addresses of tensors in pinned memory."""
        self.num_copies = 0
        """Copies from the host to the device."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check an operation, then run it."""
        kwargs = kwargs or {}
        name = func.__name__
        if name.startswith("_to_copy") and kwargs.get("device") == META:
            self._check_copy(args[0], non_blocking=kwargs.get("non_blocking", False))
        elif name.startswith("copy_"):
            assert args[0].device == args[1].device, "a copy between host and device"
        elif name.startswith("_foreach_"):
            check_foreach(args)
        return func(*args, **kwargs)

    def _check_copy(self, source: Tensor, *, non_blocking: bool) -> None:
        if source.device != META:
            assert non_blocking, "a copy to the device that waits"
            assert source.data_ptr() in self.pinned, "a copy of pageable memory"
            self.num_copies += 1


def check_foreach(args: tuple[Any, ...]) -> None:
    """Fail where one kernel cannot take a whole list of tensors.

    CUDA's kernels need one dtype and one device, and pairs of equal sizes and strides.
    Only the number by which LAMB scales each tensor has no such kernel.
    """
    lists = [
        each
        for each in args
        if isinstance(each, list) and each and isinstance(each[0], Tensor)
    ]
    kinds = {(tensor.dtype, tensor.device) for each in lists for tensor in each}
    assert len(kinds) == 1, f"one list holds {kinds}"
    for first, *others in zip(*lists, strict=True):
        for other in others:
            is_alike = (other.shape, other.stride()) == (first.shape, first.stride())
            assert is_alike or other.ndim == 0, "two lists differ in sizes or strides"


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A watch, with fused kernels and pinned memory for meta."""
    watching = Watch()
    make_tensor = torch.tensor

    def pin_memory(tensor: Tensor) -> Tensor:
        watching.pinned.add(tensor.data_ptr())
        return tensor

    def tensor(*values: Any, **options: Any) -> Tensor:
        assert options.get("device") != META, "numbers of Python, copied to the device"
        return make_tensor(*values, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(
        importlib.import_module("torch.optim.optimizer"),
        "_get_fused_kernels_supported_devices",
        lambda: ["meta"],
    )
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    return watching


def meta_batch(*, bags: bool = False) -> Batch:
    images = torch.zeros(4, 1, 64, 64, dtype=torch.float16, device=META)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(6 if bags else 4, 6, device=META)
    return Batch(images, targets, torch.arange(4))


def take_steps(
    watch: Watch,
    stepper: Stepper,
    phase: Phase,
    num_steps: int = NUM_STEPS,
    *,
    bags: bool = False,
) -> None:
    stepper.start_phase(phase, NUM_STEPS)
    for group in stepper._phase.optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = True  # as LAMB does where all weights are on a GPU
    batch = meta_batch(bags=bags)
    with watch:
        for step in range(num_steps):
            stepper.add(batch, epoch=0, iteration=2 * step)
            stepper.add(batch, epoch=0, iteration=2 * step + 1)
            stepper.update(step)


def take_tiny_steps(
    watch: Watch, optimizer: str, dtype: torch.dtype, *, mixup: bool, ema: bool
) -> None:
    phase = Phase(
        epochs=1,
        lr=1e-3,
        schedule="one-cycle",
        optimizer=optimizer,
        mixup_alpha=0.4 * mixup,
    )
    config = TrainConfig(phases=(phase,), ema_decay=0.9 * ema, accumulate=2)
    model = TinyNet().to(memory_format=torch.channels_last).to(META)
    take_steps(watch, Stepper(model, config, amp=OnMeta("meta", dtype)), phase)


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("mixup", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        *((optimizer, torch.float32) for optimizer in OPTIMIZERS),
        ("ranger", torch.bfloat16),
        ("adam", torch.float16),
    ],
)
def test_a_step_does_not_wait_for_the_device(
    watch: Watch, optimizer: str, dtype: torch.dtype, *, mixup: bool, ema: bool
) -> None:
    take_tiny_steps(watch, optimizer, dtype, mixup=mixup, ema=ema)
    assert watch.num_copies == 2 * 2 * NUM_STEPS * mixup


def test_a_step_with_bags_does_not_wait_for_the_device(watch: Watch) -> None:
    phase = Phase(epochs=1, lr=1e-3, optimizer="adam")
    stepper = Stepper(
        TinyNet().to(META),
        TrainConfig(phases=(phase,)),
        amp=OnMeta("meta", torch.bfloat16),
    )
    take_steps(watch, stepper, phase, bags=True)


@pytest.mark.parametrize("optimizer", ["radam", "ranger", "lamb"])
def test_float16_waits_with_other_optimizers_than_adam(
    watch: Watch, optimizer: str
) -> None:
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        take_tiny_steps(watch, optimizer, torch.float16, mixup=False, ema=False)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_of_a_backbone_does_not_wait_for_the_device(
    watch: Watch, arch: str
) -> None:
    phase = Phase(epochs=1, lr=1e-3)
    config = TrainConfig(phases=(phase,), ema_decay=0.9)
    model = build_model(arch).to(META)
    stepper = Stepper(model, config, amp=OnMeta("meta", torch.float32))
    take_steps(watch, stepper, phase, num_steps=1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda numbers: numbers[0].item(),
        lambda numbers: bool(numbers[0] > 0),
        lambda numbers: numbers.tolist(),
        lambda numbers: numbers.cpu(),
        lambda numbers: numbers[numbers > 0],
        lambda numbers: numbers.nonzero(),
        lambda numbers: torch.masked_select(numbers, numbers > 0),
        lambda numbers: torch.equal(numbers, numbers + 1),
        lambda numbers: torch.zeros(3).copy_(numbers),
        lambda numbers: numbers.copy_(torch.zeros(3)),
        lambda _: torch.zeros(3).to(META),
        lambda _: torch.zeros(3).to(META, non_blocking=True),
        lambda _: torch.zeros(3).pin_memory().to(META),
        lambda _: torch.tensor([1.0, 2.0], device=META),
    ],
)
def test_each_way_to_wait_fails_on_meta(
    watch: Watch, wait: Callable[[Tensor], object]
) -> None:
    with watch, pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        wait(torch.zeros(3, device=META))


def test_a_slow_foreach_call_fails_under_the_watch(watch: Watch) -> None:
    with watch, pytest.raises(AssertionError, match="one list holds"):
        torch._foreach_add_([torch.zeros(2), torch.zeros(2).long()], 1)
    with watch, pytest.raises(AssertionError, match="two lists differ"):
        torch._foreach_add_([torch.zeros(2, 3)], [torch.zeros(3, 2).T])
