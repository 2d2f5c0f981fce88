"""A GPU takes its fastest kernels; the batch for prediction doubles until it fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ichfast.models.precision import Amp
from ichfast.runs import device
from ichfast.runs.device import (
    MAX_BATCH_SIZE,
    choose_device,
    double_while,
    largest_batch_on_gpu,
)


@pytest.mark.parametrize("name", ["auto", "cuda", "cpu"])
def test_cudnn_times_its_kernels_where_a_gpu_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(device, "_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    chosen = choose_device(name)
    assert torch.backends.cudnn.benchmark is (chosen.type == "cuda")
    assert (chosen.type == "cuda") is (name != "cpu")


def test_cudnn_does_not_time_kernels_for_batch_sizes_that_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[bool] = []

    def try_batch(*_: object) -> None:
        timed.append(torch.backends.cudnn.benchmark)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(device, "_try_batch", try_batch)
    amp = Amp("cpu", torch.float32)
    assert largest_batch_on_gpu(nn.Linear(1, 1), (1, 64, 64), amp) == MAX_BATCH_SIZE
    assert set(timed) == {False}
    assert torch.backends.cudnn.benchmark is True


@pytest.mark.parametrize(
    ("room", "expected"), [(0, 0), (1, 1), (7, 4), (64, 64), (10**9, MAX_BATCH_SIZE)]
)
def test_the_largest_batch_that_fits_is_found(room: int, expected: int) -> None:
    tried: list[int] = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= room

    assert double_while(fits) == expected
    assert tried == [2**k for k in range(len(tried))]
    assert sum(size > room for size in tried) <= 1  # running out of memory is slow
