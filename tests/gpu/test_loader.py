"""The loader's promises, and a training run, on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.errors import LoaderError
from ichfast.loading import gather
from ichfast.loading.config import DataConfig
from ichfast.loading.gather import gather_slices, unpack_slices
from ichfast.loading.loader import make_loader
from ichfast.predict.ensemble import predict_runs
from ichfast.recipes.resolve import resolve_recipe
from ichfast.runs.device import choose_device
from ichfast.runs.run import train_run
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from tests.loading.contracts import check_loader, same_images
from tests.loading.packed_checks import check_batches, upload_records
from tests.packed.slices import draw_slice
from tests.runs.rank_processes import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

AUGMENT = AugmentConfig(
    flip_probability=0.5,
    max_rotation_deg=30,
    max_zoom=1.4,
    max_warp=0.2,
    max_lighting=0.2,
    cutout_probability=0.5,
)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_loader_keeps_its_promises_on_the_gpu(
    tiny_store: Store, *, shuffle: bool
) -> None:
    slices_N = np.arange(len(tiny_store) - 2)
    config = DataConfig(size=64, batch_size=6, level=256)
    device = torch.device("cuda", torch.cuda.current_device())
    with make_loader(
        tiny_store, slices_N, config, augment=AUGMENT, shuffle=shuffle, device=device
    ) as loader:
        check_loader(loader, slices_N.tolist(), batch_size=6, shuffle=shuffle)
        assert next(iter(loader)).images_BCHW.device.type == "cuda"


@pytest.mark.parametrize("cache", ["host", "device"])
def test_kept_slices_give_the_same_batches_on_the_gpu_to_the_bit(
    tiny_store: Store, cache: str
) -> None:
    config = DataConfig(size=64, batch_size=6, level=256)
    batches = []
    for kept in ("none", cache):
        with make_loader(
            tiny_store,
            np.arange(len(tiny_store)),
            replace(config, cache=kept),
            augment=AUGMENT,
            shuffle=True,
            device="cuda",
        ) as loader:
            batches.append([*loader.epoch(0), *loader.epoch(1)])
    for without, with_cache in zip(*batches, strict=True):
        assert torch.equal(without.indices_B, with_cache.indices_B)
        assert same_images(without, with_cache)


@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_batches_are_right_while_the_gpu_lags_behind_the_host(
    tiny_store: Store, cache: str
) -> None:
    """Each batch is asked for while the GPU still works on the steps before it.

    So it would show slices that are read before they are gathered, and memory that is
    reused too early.
    """
    slices_N = np.arange(28)
    config = DataConfig(size=224, batch_size=4, level=256)
    options: dict[str, Any] = {"augment": AUGMENT, "shuffle": True, "device": "cuda"}
    expected = []
    with make_loader(tiny_store, slices_N, config, **options) as loader:
        for epoch in (0, 1):
            for batch in loader.epoch(epoch):
                expected.append(batch.images_BCHW.clone())
                torch.cuda.synchronize()
    found = []
    config = replace(config, cache=cache)
    with make_loader(tiny_store, slices_N, config, **options) as loader:
        for epoch in (0, 1):
            for batch in loader.epoch(epoch):
                found.append(batch.images_BCHW.clone())
                torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    assert len(found) == len(expected) == 14
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("level", [512, 256])
def test_batches_of_a_packed_store_are_those_of_a_raw_one_on_the_gpu(
    tiny_store: Store, packed_store: Store, level: int, neighbours: int
) -> None:
    pytest.importorskip("cupy")
    config = DataConfig(size=64, batch_size=4, level=level, neighbours=neighbours)
    configs = [
        replace(config, cache=cache, cache_packed=packed)
        for cache in ("none", "host", "device")
        for packed in (True, False)
    ]
    slices_N = np.r_[2:10, 19:27]  # of one shape, with their neighbours
    check_batches(tiny_store, packed_store, slices_N, configs, device="cuda")


def load_kept_together(ranks: Ranks, store_path: Path) -> None:
    config = DataConfig(size=64, batch_size=3, level=256)
    batches = []
    for cache in ("none", "host"):
        with (
            Store(store_path) as store,
            make_loader(
                store,
                np.arange(len(store)),
                replace(config, cache=cache),
                augment=AUGMENT,
                shuffle=True,
                ranks=ranks,
                device="cuda",
            ) as loader,
        ):
            batches.append(list(loader.epoch(0)))
    assert all(map(same_images, *batches))


def test_ranks_of_a_machine_share_kept_slices(tiny_store_path: Path) -> None:
    # Both use the first GPU.
    assert run_ranks(2, load_kept_together, tiny_store_path) == ["", ""]


@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_the_augmentation_changes_on_the_gpu(tiny_store: Store, cache: str) -> None:
    config = DataConfig(size=64, batch_size=6, level=256, cache=cache)
    slices_N = np.arange(29)
    with make_loader(tiny_store, slices_N, config, device="cuda") as loader:
        before = list(loader.epoch(0))
        copies = [batch.images_BCHW.clone() for batch in before]
        loader.set_augment(AUGMENT)
        found = list(loader.epoch(0))
    with make_loader(
        tiny_store, slices_N, config, augment=AUGMENT, device="cuda"
    ) as fixed:
        assert all(map(same_images, found, fixed.epoch(0)))
    for batch, copy in zip(before, copies, strict=True):
        assert torch.equal(batch.images_BCHW, copy)


def test_gathered_slices_equal_the_reference() -> None:
    pytest.importorskip("cupy")
    assert gather.load_kernels(torch.device("cuda", torch.cuda.current_device()))
    set_NHW = torch.randint(0, 3000, (37, 64, 48), dtype=torch.int16, device="cuda")
    rows_B = torch.tensor([36, 0, 0, 5, 17], device="cuda")
    expected_BHW = torch.index_select(set_NHW, 0, rows_B)
    assert torch.equal(gather_slices(set_NHW, rows_B), expected_BHW)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        on_side_BHW = gather_slices(set_NHW, rows_B)
    side.synchronize()
    assert torch.equal(on_side_BHW, expected_BHW)


@pytest.mark.parametrize("shape", [(33, 47), (512, 512)])
def test_unpacked_slices_equal_the_reference(shape: tuple[int, int]) -> None:
    pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    slices = [draw_slice(shape, bits, rng) for bits in (1, 6, 12, 16)]
    memory, at_B, sizes_B = upload_records(slices, [3, 0, 0, 2, 1], "cuda")
    expected_BHW, _ = unpack_slices(memory.cpu(), at_B.cpu(), sizes_B.cpu(), shape)
    stored_BHW, errors_B = unpack_slices(memory, at_B, sizes_B, shape)
    assert torch.equal(stored_BHW.cpu(), expected_BHW)
    assert errors_B.tolist() == [0] * 5
    memory[at_B[4] + 32] += 1  # where the first row's payload starts
    stored_BHW, errors_B = unpack_slices(memory, at_B, sizes_B, shape)
    assert errors_B.tolist() == [0, 0, 0, 0, 1]
    assert not stored_BHW[4].any()
    assert torch.equal(stored_BHW[:4].cpu(), expected_BHW[:4])


def test_a_slice_set_larger_than_the_gpu_is_refused(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**20, 2**30))
    config = DataConfig(size=64, batch_size=6, level=256, cache="device")
    with pytest.raises(LoaderError, match=r"the GPU can spare 0\.0 GiB"):
        make_loader(tiny_store, np.arange(29), config, device="cuda")


def test_the_size_changes_between_epochs_on_the_gpu(tiny_store: Store) -> None:
    config = DataConfig(size=64, batch_size=6, level=512)
    with make_loader(
        tiny_store, np.arange(29), config, augment=AUGMENT, device="cuda"
    ) as loader:
        for size in (64, 300, 96):
            loader.set_size(size)
            with make_loader(
                tiny_store,
                np.arange(29),
                replace(config, size=size),
                augment=AUGMENT,
                device="cuda",
            ) as fixed:
                for found, expected in zip(
                    loader.epoch(2), fixed.epoch(2), strict=True
                ):
                    assert same_images(found, expected)


def test_a_run_trains_and_predicts_on_the_gpu(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    device = choose_device("cuda")
    recipe = resolve_recipe(
        "fast",
        arch="xresnet50-attn",
        size=64,
        assignments=["train.epochs=1", "data.batch_size=4", "folds.num_folds=2"],
    )
    report = train_run(tiny_store_path, recipe, tmp_path / "run", device=device)
    assert report.device == "cuda"
    assert np.isfinite(report.valid_loss)
    assert len(predict_runs([tmp_path / "run"], device=device)) > 0
