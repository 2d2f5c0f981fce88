"""The checks of a GPU's steps, run on the CPU, hold there, too."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from ichfast.store.store import Store
from ichfast.training.optimizers import OPTIMIZERS
from tests.runs.rank_processes import run_ranks
from tests.training.device_checks import (
    FORMATS,
    check_export,
    check_format,
    check_memory,
    check_ranks,
    check_waits,
    plain_net,
)
from tests.training.tiny_trainer import TinyNet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "max_loss_error", "min_cosine"), FORMATS)
def test_steps_in_each_format_agree_with_float32(
    dtype: torch.dtype, max_loss_error: float, min_cosine: float
) -> None:
    check_format(
        plain_net, CPU, dtype, max_loss_error=max_loss_error, min_cosine=min_cosine
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_end_finite(optimizer: str) -> None:
    check_waits(TinyNet, CPU, nullcontext, optimizer=optimizer, dtype=torch.bfloat16)


@pytest.mark.slow
def test_ranks_end_with_one_model() -> None:
    assert run_ranks(2, check_ranks, "cpu") == ["", ""]


@pytest.mark.slow
def test_the_memory_of_tensors_stays_flat(tiny_store: Store) -> None:
    check_memory(tiny_store, CPU, bytes_of_tensors)


def bytes_of_tensors() -> int:
    gc.collect()
    # Not those of other types, such as those without memory that an export leaves.
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, Parameter)]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_sparse)


@pytest.mark.slow
def test_an_exported_model_gives_the_predictions(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    check_export(tmp_path, tiny_store_path, CPU, atol=1e-4)
