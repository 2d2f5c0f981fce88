"""A batch moves, unpacks, collates, pickles and prints as a named tuple."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_map
from torch.utils.data import default_collate

from ichfast.loading.batch import Batch


def a_batch(first: int = 0) -> Batch:
    indices = torch.arange(first, first + 4)
    images = indices.half()[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    return Batch(images, indices[:, None].float().expand(4, 6), indices)


def test_a_batch_unpacks_into_images_targets_and_indices() -> None:
    batch = a_batch()
    images, targets, indices = batch
    assert images is batch.images_BCHW
    assert targets is batch.targets_BK
    assert indices is batch.indices_B
    assert batch.num_slices == 4


def send(batch: Batch) -> Batch:
    return batch.to("meta")


def send_without_waiting(batch: Batch) -> Batch:
    return batch.to(torch.device("meta"), non_blocking=True)


def send_as_tree(batch: Batch) -> Batch:
    return tree_map(lambda tensor: tensor.to("meta"), batch)


@pytest.mark.parametrize("move", [send, send_without_waiting, send_as_tree])
def test_a_batch_moves_to_a_device_with_all_its_tensors(
    move: Callable[[Batch], Batch],
) -> None:
    batch = a_batch()
    moved = move(batch)
    assert isinstance(moved, Batch)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert {tensor.device.type for tensor in batch} == {"cpu"}
    assert [tensor.dtype for tensor in moved] == [tensor.dtype for tensor in batch]


@pytest.mark.parametrize("waits", [False, True])
def test_the_host_waits_for_a_copy_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    asked: list[bool] = []

    def copy(tensor: torch.Tensor, _: object, *, non_blocking: bool) -> torch.Tensor:
        asked.append(non_blocking)
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", copy)
    a_batch().to("cpu") if waits else a_batch().to("cpu", non_blocking=True)
    assert asked == [not waits] * 3


def test_batches_collate() -> None:
    stacked = default_collate([a_batch(), a_batch(4)])
    assert isinstance(stacked, Batch)
    assert stacked.images_BCHW.shape == (2, 4, 3, 8, 8)
    assert stacked.indices_B.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_batch_pickles() -> None:
    batch = a_batch()
    copied = pickle.loads(pickle.dumps(batch))
    assert isinstance(copied, Batch)
    assert all(map(torch.equal, copied, batch))


ONE_LINE = (
    "Batch(images_BCHW: float16 (4, 3, 8, 8) on cpu, "
    "targets_BK: float32 (4, 6) on cpu, indices_B: int64 (4,) on cpu)"
)


def test_a_batch_prints_in_one_line() -> None:
    assert repr(a_batch()) == ONE_LINE
    assert f"{a_batch()}" == ONE_LINE
    assert str([a_batch()]) == f"[{ONE_LINE}]"


def test_a_batch_prints_what_was_mapped_into_it() -> None:
    counts = tree_map(lambda tensor: tensor.numel(), a_batch())
    assert repr(counts) == "Batch(images_BCHW: 768, targets_BK: 24, indices_B: 4)"
