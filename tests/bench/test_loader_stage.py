"""The stage loader at toy size: its limits, and the images of its peers."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bench.harness.loading import open_loader
from bench.harness.measure import Meter
from bench.harness.session import (
    run_stage,
)
from bench.harness.workload import Workload, common_slices
from bench.peers import PEERS, reason_to_skip
from bench.peers.task import LoaderTask
from bench.scaling.quantities import loader_record
from bench.stages.loader import (
    CopyAlone,
    WarpAlone,
    gpu_copies,
    make_task,
    pick_slices,
)
from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import draw
from ichfast.loading.loader import make_loader
from ichfast.recipes.reference import exp_30
from ichfast.windows import parse_window
from tests.bench.stage_checks import one_batch, run_toy_stage

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_stage_runs_and_is_compared_with_its_limit_and_all_peers(
    toy: Workload,
) -> None:
    records = run_toy_stage("loader", toy)
    named = {record.name for record in records}
    assert {"torchvision", "grid-sample", "fastai-png", "ffcv"} <= named
    without_gpu = {each.name for each in records if each.reason == "no GPU is used"}
    assert without_gpu == {"upload", "copy on the GPU"}
    for level in (512, 256):
        assert loader_record(records, level, toy.size)


@pytest.mark.slow
def test_a_sized_stage_runs_at_each_size(toy: Workload) -> None:
    meter = Meter(device="cpu", repeats=1, warmup=0)
    alone = replace(toy, peers=())
    records = run_stage("loader", [alone, replace(alone, size=48)], meter)
    cases = {record.case for record in records}
    assert {"level 512 to 32", "level 512 to 48"} <= cases


def test_copies_move_a_batch_as_often_as_an_epoch_has_batches() -> None:
    batch_BHW = torch.arange(4 * 3 * 2, dtype=torch.int16).reshape(4, 3, 2)
    copied_BHW = torch.zeros_like(batch_BHW)
    assert CopyAlone(batch_BHW, copied_BHW, num_batches=5).run() == 5 * 4
    assert torch.equal(copied_BHW, batch_BHW)


class FakePipeline:
    """A DALI pipeline that takes batches from its source and notes its streams."""

    def __init__(self, source: Any, **_options: object) -> None:
        self._source = source
        self._iteration = 0
        self.streams: list[object] = []
        self.batches: list[Any] = []

    def build(self) -> None:
        pass

    def run(self, *streams: object) -> None:
        batch = self._source(SimpleNamespace(iteration=self._iteration))
        self._iteration += 1
        self.streams += streams
        self.batches.append(batch)

    def reset(self) -> None:
        self._iteration = 0


def test_on_a_gpu_the_warp_reads_pinned_memory_and_does_not_wait_for_batches(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU there are no streams and no pinned memory; a tensor list does not
    # tell whether its memory is pinned, so what it is told is noted.
    pinned: list[npt.NDArray[np.int16]] = []

    def pin(stored_BHW: torch.Tensor) -> torch.Tensor:
        pinned.append(stored_BHW.clone().numpy())
        return torch.from_numpy(pinned[-1])

    wrapped: list[tuple[npt.NDArray[np.uint16], bool]] = []

    def wrap(stored_BHW: npt.NDArray[np.uint16], *, pinned: bool) -> None:
        wrapped.append((stored_BHW, pinned))

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "torch's stream")
    monkeypatch.setattr("bench.stages.loader.pipeline_options", lambda *_, **__: {})
    monkeypatch.setattr("bench.stages.loader._warp_graph", FakePipeline)
    monkeypatch.setattr("bench.stages.loader.wrap_host_slices", wrap)
    with toy.open_store() as store:
        task = replace(make_task(store, 256, toy), device="cuda")
        warp = WarpAlone(store, task)
    assert [warp.run(), warp.run()] == [16, 16]
    assert warp._pipeline.streams == ["torch's stream"] * 8
    for (stored_BHW, is_pinned), memory in zip(wrapped, 2 * pinned, strict=True):
        assert is_pinned
        assert stored_BHW.shape == (4, 32, 32)  # halved three times
        assert np.shares_memory(stored_BHW, memory)


def test_the_memory_of_the_warp_is_bounded_and_its_batches_come_again(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.loader._warp_graph", FakePipeline)
    monkeypatch.setattr("bench.stages.loader.wrap_host_slices", lambda each, **_: each)
    bounds = {"none": 2**30, "two batches": 2 * 4 * 2 * 64**2, "less than one": 1}
    different = {}
    with toy.open_store() as store:
        task = make_task(store, 256, replace(toy, size=64, num_loaded=20))
        for name, num_bytes in bounds.items():
            monkeypatch.setattr("bench.stages.loader.MAX_WARP_BYTES", num_bytes)
            warp = WarpAlone(store, task)
            assert warp.run() == 20
            different[name] = [
                id(stored_BHW) for stored_BHW, _ in warp._pipeline.batches
            ]
    assert [len(set(ids)) for ids in different.values()] == [5, 2, 1]
    first, second, *rest = different["two batches"]
    assert rest == [first, second, first]


def test_a_small_store_is_loaded_several_times_over(toy: Workload) -> None:
    with toy.open_store() as store:
        slices_N = common_slices(store)
        picked_N = pick_slices(store, 2 * len(slices_N) + 3)
        assert pick_slices(store, 3).tolist() == slices_N[[0, 23, 47]].tolist()
    assert picked_N.tolist() == [*slices_N, *slices_N, *slices_N[:3]]


@pytest.mark.slow
def test_a_peer_that_cannot_be_opened_loses_no_other_record(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_task: LoaderTask) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("bench.peers.grid_sample.make", refuse)
    peers = ("grid-sample", "torchvision")
    records = run_toy_stage("loader", replace(toy, peers=peers))
    reasons = {record.reason for record in records if record.name == "grid-sample"}
    assert reasons == {"it failed with RuntimeError"}
    measured = {record.name for record in records if record.estimate is not None}
    assert measured == {"ichfast", "warp alone", "torchvision", "always", "never"}


def test_a_gpu_is_held_to_copies_over_the_bus_and_on_the_gpu(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU there is no pinned memory; what is copied where stays the same.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with toy.open_store() as store:
        copies = gpu_copies(store, make_task(store, 256, one_batch(toy)))
    assert [copy.name for copy in copies] == ["upload", "copy on the GPU"]
    assert {copy.role for copy in copies} == {"limit"}
    assert [copy.run() for copy in copies] == [4, 4]
    assert [copy.settings["unit_bytes"] for copy in copies] == [2 * 256**2] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in PEERS if PEERS[n].stage == "loader" and not reason_to_skip(n)],
)
def test_a_loader_peer_gives_the_same_shape_type_and_number(
    name: str, toy: Workload
) -> None:
    with toy.open_store() as store:
        task = make_task(store, store.levels[0], one_batch(toy))
    peer = import_module(PEERS[name].module).make(task)
    for epoch in range(2):
        images = [batch.images_BCHW for batch in peer.epoch(epoch)]
        assert [tuple(b.shape) for b in images] == [(4, 1, 32, 32)]
        assert all(bool(b.isfinite().all()) for b in images)
    peer.close()


def test_dali_numpy_shows_the_slice_and_mirrors_and_cuts_when_told(
    toy: Workload,
) -> None:
    with toy.open_store() as store:
        task = make_task(store, 512, one_batch(replace(toy, size=64)))
        stored_BHW = np.stack([store.slice_HW(k) for k in task.positions_N.tolist()])
    value_BHW = ((stored_BHW.astype(float) - 1024) / 80).clip(0, 1)
    (mean,), (std,) = task.normalization.mean, task.normalization.std
    plain_BHW = (value_BHW - mean) / std
    away_px = np.hypot(*(np.mgrid[:64, :64] - 31.5))

    def disc_B(images_BHW: np.ndarray) -> np.ndarray:
        """Mean of the middle of each image, which no turn about it changes."""
        return np.asarray(images_BHW[:, away_px < 16].mean(axis=1))

    # It shuffles, so slices are put in order by their middle.
    plain_BHW = plain_BHW[np.argsort(disc_B(plain_BHW))]

    def first_batch(augment: AugmentConfig) -> np.ndarray:
        peer = import_module("bench.peers.dali_numpy").make(
            replace(task, augment=augment)
        )
        images_BSS = (
            next(iter(peer.epoch(0))).images_BCHW[:, 0].numpy().astype(np.float64)
        )
        peer.close()
        return np.asarray(images_BSS[np.argsort(disc_B(images_BSS))])

    assert task.window == parse_window("brain")
    np.testing.assert_allclose(first_batch(AugmentConfig()), plain_BHW, atol=4e-3)
    mirrored_BHW = first_batch(AugmentConfig(flip_probability=1.0))
    np.testing.assert_allclose(mirrored_BHW, plain_BHW[..., ::-1], atol=4e-3)
    turned_BHW = first_batch(
        AugmentConfig(affine_probability=1.0, max_rotation_deg=30.0)
    )
    assert abs(turned_BHW - plain_BHW).mean() > 0.1
    np.testing.assert_allclose(disc_B(turned_BHW), disc_B(plain_BHW), atol=0.1)
    black = float(np.float16(-mean / std))
    num_black = [
        (first_batch(AugmentConfig(cutout_probability=chance)) == black).sum()
        for chance in (0.0, 1.0)
    ]
    assert num_black[1] > num_black[0] + 4 * 4 * 2 * 2


@pytest.mark.parametrize("level", [512, 256])
def test_grid_sample_gives_the_same_images_as_ichfast(
    level: int, toy: Workload
) -> None:
    with toy.open_store() as store:
        task = make_task(store, level, replace(toy, size=64))
        peer = import_module("bench.peers.grid_sample").make(task)
        config = replace(exp_30().data, size=64, level=level, batch_size=4)
        with make_loader(
            store,
            task.positions_N,
            config,
            normalization=task.normalization,
            augment=task.augment,
            shuffle=True,
        ) as loader:
            for batch in loader.epoch(0):
                theirs_BCHW = peer.images(batch.indices_B.numpy(), 0).float()
                gap_BCHW = (batch.images_BCHW.float() - theirs_BCHW).abs()
                # Windowed values span 4.4; noise makes single pixels differ more.
                assert gap_BCHW.mean() < 0.05
        peer.close()


@pytest.mark.parametrize("size", [32, 64])  # of 64: halved once, and not at all
def test_ffcv_gives_the_same_images_as_ichfast_and_grid_sample(
    size: int, toy: Workload
) -> None:
    if reason := reason_to_skip("ffcv"):
        pytest.skip(reason)
    with toy.open_store() as store:
        task = make_task(store, 512, replace(toy, size=size))
        peer = import_module("bench.peers.ffcv_arrays").make(task)
        with open_loader(store, task) as loader:
            ours, theirs = next(loader.epoch(1)), next(peer.epoch(1))
    peer.close()
    assert theirs.indices_B.tolist() == ours.indices_B.tolist()
    gap_BCHW = (theirs.images_BCHW.float() - ours.images_BCHW.float()).abs()
    # Windowed values span 4.4. A place read between two numbers may round either way.
    assert gap_BCHW.max() < 0.1
    assert gap_BCHW.mean() < 1e-3
    other = import_module("bench.peers.grid_sample").make(task)
    expected_BCHW = other.images(theirs.indices_B.numpy(), 1).float()
    other.close()
    gap_BCHW = (theirs.images_BCHW.float() - expected_BCHW).abs()
    # It rounds to a stored number when it halves and when it resamples; this does not.
    assert gap_BCHW.max() < 0.2
    assert gap_BCHW.mean() < 0.02


@pytest.mark.parametrize("level", [512, 256])
def test_monai_gives_the_same_images_as_grid_sample(level: int, toy: Workload) -> None:
    if reason := reason_to_skip("monai"):
        pytest.skip(reason)
    with toy.open_store() as store:
        task = make_task(store, level, replace(toy, size=64))
        stored_BHW = np.stack(
            [store.slice_HW(k, level) for k in task.positions_N.tolist()]
        )
    transform = import_module("bench.peers.monai_arrays").MonaiTransform(task)
    peer = import_module("bench.peers.grid_sample").make(task)
    expected_B1SS = peer.images(task.positions_N, 0).float()
    peer.close()
    for stored_HW, position, expected_1SS in zip(
        stored_BHW, task.positions_N, expected_B1SS, strict=True
    ):
        drawn = draw(
            task.augment,
            seed=0,
            epoch=0,
            slices_B=np.array([position]),
            source_shape_B2=np.array([[64.0, 64.0]]),
            size=64,
        )
        gap_1SS = (transform.show(stored_HW, drawn).float() - expected_1SS).abs()
        # Windowed values span 4.4; float32 sees a place between pixels in two ways.
        assert gap_1SS.max() < 0.02
