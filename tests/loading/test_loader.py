"""The DALI loader keeps its promises, and its errors are one line."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import draw_depth_flips
from ichfast.errors import IchfastError, LoaderError, StoreError
from ichfast.labels import CLASSES
from ichfast.loading.batch import Batch
from ichfast.loading.config import DataConfig, choose_level
from ichfast.loading.dali import as_torch
from ichfast.loading.feeds import Scale
from ichfast.loading.graph import PREFETCH, pipeline_options
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks
from ichfast.windows import Normalization
from tests.loading.contracts import check_loader, order_of, same_images

DATA = DataConfig(size=48, batch_size=6, level=256, windows=("brain",))
NORMALIZATION = Normalization(mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
GEOMETRY = AugmentConfig(
    flip_probability=0.5, max_rotation_deg=30, max_zoom=1.4, max_warp=0.2
)


def everything(store: Store) -> npt.NDArray[np.int64]:
    return np.arange(len(store))


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_loader_keeps_the_promises_of_every_loader(
    tiny_store: Store, *, shuffle: bool
) -> None:
    slices_N = everything(tiny_store)[:-2]
    augment = replace(GEOMETRY, cutout_probability=0.5, max_lighting=0.2)
    with make_loader(
        tiny_store, slices_N, DATA, augment=augment, shuffle=shuffle, seed=4
    ) as loader:
        check_loader(loader, slices_N.tolist(), batch_size=6, shuffle=shuffle)


@pytest.fixture
def _gpu_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the graph of a GPU on the CPU: its steps, its executor, its queue.

    Batches are DALI's own memory, as on a GPU, and not copies.
    """

    def options_of_a_gpu(batch_size: int, *, on_gpu: bool) -> dict[str, Any]:
        assert not on_gpu
        return pipeline_options(batch_size, on_gpu=False) | {
            "exec_dynamic": True,
            "prefetch_queue_depth": PREFETCH["cuda"],
        }

    monkeypatch.setattr("ichfast.loading.loader.graph_is_whole", lambda _: True)
    monkeypatch.setattr("ichfast.loading.loader.pipeline_options", options_of_a_gpu)
    monkeypatch.setattr(
        "ichfast.loading.loader.as_torch",
        lambda tensors, on_gpu: as_torch(tensors, on_gpu=not on_gpu),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_gpu_graph")
@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_graph_of_a_gpu_keeps_the_promises_of_every_loader(
    tiny_store: Store, cache: str, *, shuffle: bool
) -> None:
    slices_N = everything(tiny_store)[:-2]
    augment = replace(GEOMETRY, cutout_probability=0.5, max_lighting=0.2)
    config = replace(DATA, level=512, cache=cache)
    with make_loader(
        tiny_store, slices_N, config, augment=augment, shuffle=shuffle, seed=4
    ) as loader:
        check_loader(loader, slices_N.tolist(), batch_size=6, shuffle=shuffle)


def halving_steps(loader: DaliLoader) -> int:
    return sum(name.startswith("halves.") for name in loader._feeds.columns.feeds)


@pytest.mark.usefixtures("_gpu_graph")
@pytest.mark.parametrize(
    ("level", "size", "steps"),
    [
        (256, 224, 0),
        (256, 256, 0),
        (256, 64, 2),
        (512, 512, 0),
        (512, 300, 0),
        (512, 224, 1),
        (512, 100, 2),
        (512, 32, 4),
    ],
)
def test_the_graph_has_the_halving_steps_of_its_size_and_no_more(
    tiny_store: Store, level: int, size: int, steps: int
) -> None:
    config = replace(DATA, level=level, size=size)
    with make_loader(tiny_store, everything(tiny_store), config) as loader:
        assert halving_steps(loader) == steps


@pytest.mark.usefixtures("_gpu_graph")
def test_the_graph_is_built_again_for_a_size_with_other_halving_steps_only(
    tiny_store: Store,
) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        for size, steps in ((48, 2), (60, 2), (224, 0), (40, 2)):
            before = loader._graph._pipeline
            was = halving_steps(loader)
            loader.set_size(size)
            batches = list(loader)
            assert batches[0].images_BCHW.shape[-1] == size
            assert halving_steps(loader) == steps
            assert (loader._graph._pipeline is before) is (was == steps)


def test_iterating_again_is_the_next_epoch(tiny_store: Store) -> None:
    slices_N = everything(tiny_store)
    with make_loader(tiny_store, slices_N, DATA, shuffle=True) as loader:
        first, second = order_of(list(loader)), order_of(list(loader))
        assert first == order_of(list(loader.epoch(0)))
        assert second == order_of(list(loader.epoch(1)))


def images_of(store: Store, config: DataConfig, **options: Any) -> torch.Tensor:
    """Every image of a loader's first epoch, in order."""
    with make_loader(store, everything(store), config, **options) as loader:
        return torch.cat([batch.images_BCHW for batch in loader])


def test_a_slices_own_window_is_the_one_in_its_header(tiny_store: Store) -> None:
    tiny_store.table["window_center"] = np.where(everything(tiny_store) % 2, 80, 40)
    tiny_store.table["window_width"] = np.where(everything(tiny_store) % 2, 200.0, 80.0)
    # These three are no windows: missing, beyond float32, too narrow. Brain is used.
    tiny_store.table.loc[4, "window_center"] = np.nan
    tiny_store.table.loc[8, "window_width"] = 1e39
    tiny_store.table.loc[10, "window_width"] = 0.5
    own = images_of(tiny_store, replace(DATA, windows=("own",)))
    brain = images_of(tiny_store, replace(DATA, windows=("brain",)))
    subdural = images_of(tiny_store, replace(DATA, windows=("subdural",)))
    torch.testing.assert_close(own[::2], brain[::2], atol=1e-3, rtol=0)
    torch.testing.assert_close(own[1::2], subdural[1::2], atol=1e-3, rtol=0)
    assert (brain - subdural).abs().max() > 0.1


def test_neighbours_are_the_slices_before_and_after_in_the_series(
    tiny_store: Store,
) -> None:
    plain = images_of(tiny_store, DATA)[:, 0]
    five = images_of(tiny_store, replace(DATA, neighbours=2))
    assert five.shape == (29, 5, 48, 48)
    for k, slab_D in enumerate(slabs_of(tiny_store)):
        assert torch.equal(five[k], plain[slab_D])
    three = images_of(tiny_store, replace(DATA, neighbours=1))
    assert torch.equal(three, five[:, 1:4])


@pytest.mark.usefixtures("either_graph")
def test_a_slab_has_the_bits_of_a_loader_of_single_slices_for_each_window(
    tiny_store: Store,
) -> None:
    """The windows of the first slice come first."""
    windows = ("brain", "subdural", "600/2800/sigmoid")
    config = replace(DATA, windows=windows, level=512)
    options = {"normalization": NORMALIZATION}
    single = images_of(tiny_store, config, **options)
    nine = images_of(tiny_store, replace(config, neighbours=1), **options)
    assert nine.shape == (29, 9, 48, 48)
    for k, slab_D in enumerate(slabs_of(tiny_store)):
        assert torch.equal(nine[k], torch.cat([*single[slab_D[1:4]]]))


def slabs_of(store: Store) -> list[list[int]]:
    """Two slices below each slice, itself and two above, found one by one."""
    series = store.table["series"].astype(str).tolist()
    shapes = store.table[["rows", "columns"]].to_numpy().tolist()

    def moved(k: int, step: int) -> int:
        at = min(max(k + step, 0), len(series) - 1)
        return at if (series[at], shapes[at]) == (series[k], shapes[k]) else k

    slabs = []
    for k in range(len(series)):
        below, above = moved(k, -1), moved(k, 1)
        slabs.append([moved(below, -1), below, k, above, moved(above, 1)])
    return slabs


def test_neighbours_are_augmented_like_their_slice(tiny_store: Store) -> None:
    config = replace(DATA, neighbours=1)
    augment = replace(GEOMETRY, cutout_probability=1.0)
    three = images_of(tiny_store, config, augment=augment)
    plain = images_of(tiny_store, DATA, augment=augment)
    assert torch.equal(three[:, 1], plain[:, 0])
    assert torch.equal(three[0, 0], three[0, 1])  # the first slice is its own neighbour


@pytest.mark.parametrize("cache", ["none", "host"])
def test_a_flip_in_depth_swaps_above_and_below_and_nothing_else(
    tiny_store: Store, cache: str
) -> None:
    config = replace(DATA, windows=("brain", "bone"), neighbours=2, cache=cache)
    sometimes = replace(GEOMETRY, depth_flip_probability=0.5)
    plain, flipped = (
        images_of(tiny_store, config, augment=augment).view(29, 5, 2, 48, 48)
        for augment in (GEOMETRY, sometimes)
    )
    drawn = draw_depth_flips(
        sometimes, seed=0, epoch=0, slices_B=everything(tiny_store)
    )
    assert 8 < drawn.sum() < 21
    assert torch.equal(flipped[drawn], plain[drawn].flip(1))
    assert torch.equal(flipped[~drawn], plain[~drawn])
    assert not torch.equal(plain[drawn], plain[drawn].flip(1))


def test_a_changed_flip_in_depth_gives_the_batches_of_a_loader_made_with_it(
    tiny_store: Store,
) -> None:
    config = replace(DATA, neighbours=1)
    augment = AugmentConfig(depth_flip_probability=0.5)
    expected = images_of(tiny_store, config, augment=augment)
    with make_loader(tiny_store, everything(tiny_store), config) as loader:
        assert not torch.equal(next(iter(loader)).images_BCHW, expected[:6])
        loader.set_augment(augment)
        found = torch.cat([batch.images_BCHW for batch in loader.epoch(0)])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("whole", [False, True], ids=["resampling", "whole"])
def test_targets_are_the_labels_and_missing_ones_are_nan(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Each may be missing by itself. In the whole graph they pass through DALI."""
    monkeypatch.setattr("ichfast.loading.loader.graph_is_whole", lambda _: whole)
    names = list(CLASSES)
    is_missing_NK = np.random.default_rng(0).random((len(tiny_store), 6)) < 0.5
    tiny_store.table[names] = tiny_store.table[names].mask(is_missing_NK)
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        targets_NK = torch.cat([batch.targets_BK for batch in loader]).numpy()
    assert targets_NK.dtype == np.float32
    assert 0.4 < np.isnan(targets_NK).mean() < 0.7
    np.testing.assert_array_equal(targets_NK, tiny_store.labels_NK())


def test_single_window_batches_have_one_channel(tiny_store: Store) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        assert next(iter(loader)).images_BCHW.shape == (6, 1, 48, 48)
        assert repr(loader) == (
            "DaliLoader(29 slices in 5 batches of 6, level 256 -> 48 px, "
            "windows brain, cpu)"
        )


def test_batches_stay_valid_after_later_ones_and_after_closing(
    tiny_store: Store,
) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        batches = list(loader)
        copies = [batch.images_BCHW.clone() for batch in batches]
        list(loader)
    assert all(
        torch.equal(batch.images_BCHW, copy)
        for batch, copy in zip(batches, copies, strict=True)
    )


def test_auto_takes_the_smallest_level_that_is_large_enough(tiny_store: Store) -> None:
    assert choose_level(tiny_store, replace(DATA, size=256, level="auto")) == 256
    assert choose_level(tiny_store, replace(DATA, size=257, level="auto")) == 512
    assert choose_level(tiny_store, replace(DATA, size=600, level="auto")) == 512


# Caches


@pytest.mark.parametrize("cache", ["host", "device"])
@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("level", [512, 256])
def test_kept_slices_give_the_same_batches_to_the_bit(
    tiny_store: Store, cache: str, level: int, neighbours: int
) -> None:
    slices_N = everything(tiny_store)[3:25:2]
    config = replace(DATA, level=level, batch_size=4, neighbours=neighbours)
    batches = []
    for kept in ("none", cache):
        with make_loader(
            tiny_store,
            slices_N,
            replace(config, cache=kept),
            augment=replace(GEOMETRY, depth_flip_probability=0.5),
            shuffle=True,
        ) as loader:
            batches.append([*loader.epoch(0), *loader.epoch(3, first_batch=1)])
    for without, with_cache in zip(*batches, strict=True):
        assert torch.equal(without.indices_B, with_cache.indices_B)
        assert same_images(without, with_cache)


def test_kept_slices_are_read_once(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(DATA, cache="host")
    with make_loader(tiny_store, everything(tiny_store), config) as loader:
        monkeypatch.setattr("os.preadv", None)
        assert len(list(loader)) == len(list(loader)) == 5
        assert "cpu, kept: host)" in repr(loader)


# Inputs of the graph


def test_only_numbers_that_are_used_are_computed(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ichfast.loading.feeds.window_columns", None)
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        columns, slices = loader._feeds.columns, loader._feeds.slices
        assert columns.feeds == ("matrix", "size")
        assert slices.feeds == ("slice.0",)
        assert len(list(loader)) == 5
        assert set(columns._drawn) == {"target", "index", "matrix", "size"}


# The whole graph, and NumPy around the resample


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["none", "host"])
def test_the_whole_graph_gives_the_bits_of_numpy_around_the_resample(
    tiny_store: Store, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are holes but no lighting, which uses a grid only in the graph."""
    config = replace(
        DATA, size=40, level=512, windows=("400/3000",), neighbours=1, cache=cache
    )
    augment = replace(GEOMETRY, cutout_probability=0.8)
    batches: list[list[Batch]] = []
    for whole in (False, True):
        monkeypatch.setattr(
            "ichfast.loading.loader.graph_is_whole", lambda _, whole=whole: whole
        )
        with make_loader(
            tiny_store, everything(tiny_store), config, augment=augment
        ) as loader:
            assert ("halves.2" in loader._feeds.columns.feeds) is whole
            assert ("corners" in loader._feeds.columns.feeds) is whole
            batches.append(list(loader))
            loader.set_size(160)
            batches[-1] += list(loader)
    assert len(batches[0]) == 10
    for by_numpy, by_graph in zip(*batches, strict=True):
        assert same_images(by_numpy, by_graph)


# Changes between epochs


@pytest.mark.parametrize("level", [512, 256])
def test_a_changed_size_gives_the_batches_of_a_loader_made_with_it(
    tiny_store: Store, level: int
) -> None:
    augment = replace(GEOMETRY, cutout_probability=0.8)
    options: dict[str, Any] = {"augment": augment, "shuffle": True, "seed": 5}
    config = replace(DATA, level=level)
    slices_N = everything(tiny_store)
    with make_loader(tiny_store, slices_N, config, **options) as changing:
        for epoch, size in enumerate((48, 100, 300, 32)):
            changing.set_size(size)
            batches = list(changing.epoch(epoch))
            config = replace(config, size=size)
            with make_loader(tiny_store, slices_N, config, **options) as fixed:
                expected = list(fixed.epoch(epoch))
            assert batches[0].images_BCHW.shape == (6, 1, size, size)
            for found, wanted in zip(batches, expected, strict=True):
                assert same_images(found, wanted)


def test_a_size_changes_with_the_next_epoch_and_not_before(
    tiny_store: Store,
) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        batches = loader.epoch(0)
        next(batches)
        loader.set_size(64)
        assert {batch.images_BCHW.shape[-1] for batch in batches} == {48}
        assert {batch.images_BCHW.shape[-1] for batch in loader} == {64}
        with pytest.raises(LoaderError, match="from 32 to 4096 pixels, got 31"):
            loader.set_size(31)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_a_changed_augmentation_gives_the_batches_of_a_loader_made_with_it(
    tiny_store: Store, cache: str
) -> None:
    slices_N = everything(tiny_store)
    config = replace(DATA, cache=cache)
    with make_loader(tiny_store, slices_N, config) as changing:
        for augment in (GEOMETRY, AugmentConfig(max_lighting=0.2), GEOMETRY):
            left_early = changing.epoch(0)
            next(left_early)
            changing.set_augment(augment)
            with pytest.raises(LoaderError, match="or its augmentation "):
                next(left_early)
            found = list(changing.epoch(1))
            with make_loader(tiny_store, slices_N, DATA, augment=augment) as fixed:
                expected = list(fixed.epoch(1))
            assert all(map(same_images, found, expected))
            assert len(found) == 5
    with pytest.raises(LoaderError, match="the loader is closed"):
        changing.set_augment(AugmentConfig())


# Errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "data.size is from 32 to 4096 pixels, got 0"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"windows": ()}, "windows takes at least 1 window, got 0"),
        ({"normalize": "mean"}, "imagenet, data or none"),
        ({"cache": "gpu"}, "data.cache is none, host or device, got 'gpu'"),
        ({"windows": ("brian",)}, "brian"),
        ({"neighbours": 3}, "data.neighbours is from 0 to 2 slices, got 3"),
        ({"neighbours": -1}, "data.neighbours is from 0 to 2 slices, got -1"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(IchfastError, match=message) as caught:
        replace(DATA, **wrong)
    assert "\n" not in str(caught.value)


BALANCED = {"config": replace(DATA, sampling="balanced"), "shuffle": True}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"config": replace(DATA, level=128)}, "has the levels 512, 256, not 128"),
        ({"config": replace(DATA, level="512")}, "levels 512, 256, not '512'; choose"),
        (
            {"slices_N": [True, False]},
            r"numbers; got bool; for a mask pass np\.flatnon",
        ),
        ({"slices_N": [0.5, 1.0]}, "whole numbers; got float64"),
        ({"slices_N": ["ID_1"]}, "whole numbers; got <U4"),
        ({"seed": -1}, "the seed must be 0 or more, got -1"),
        (
            {"config": replace(DATA, normalize="imagenet")},
            r"data\.normalize is imagenet.* pass normalization=measure_norm",
        ),
        ({"slices_N": [0, 1, 2], "shuffle": True}, r"3 slice\(s\) do not fill one ba"),
        (
            {"shuffle": True, "ranks": Ranks(0, 9)},
            r"29 slice\(s\) do not fill .* on 9 dev",
        ),
        ({"slices_N": []}, r"one slice or more, got an array of shape \(0,\)"),
        ({"slices_N": [[1, 2]]}, r"one slice or more, got an array of shape \(1, 2\)"),
        ({"slices_N": [0, 29]}, "holds slices 0 to 28, asked for 29"),
        ({"slices_N": [-1, 3]}, "holds slices 0 to 28, asked for -1"),
        ({"slices_N": [0, 29]} | BALANCED, "holds slices 0 to 28, asked for 29"),
        ({"slices_N": []} | BALANCED, r"one slice or more, got an array of shape"),
        ({"ranks": Ranks(2, 2)}, "from 0 to world_size - 1, got rank 2 of 2"),
        ({"ranks": Ranks(2, 2)} | BALANCED, "got rank 2 of 2"),
        ({"ranks": Ranks(-1, 1)}, "got rank -1 of 1"),
        ({"ranks": Ranks(0, 0)}, "got rank 0 of 0"),
        ({"device": "gpu"}, "device is cpu or cuda, got 'gpu'"),
        ({"device": None}, "device is cpu or cuda, got None"),
        ({"device": torch.device("meta")}, r"cpu or cuda, got device\(type='meta'\)"),
        ({"normalization": NORMALIZATION}, r"each of 1 window\(s\), got 3"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(
    tiny_store: Store, wrong: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"slices_N": everything(tiny_store), "config": DATA}
    with pytest.raises(LoaderError, match=message) as caught:
        make_loader(tiny_store, **options | wrong)
    assert "\n" not in str(caught.value)


def test_a_numpy_integer_is_a_seed(tiny_store: Store) -> None:
    ours, numpys = (
        images_of(tiny_store, DATA, augment=GEOMETRY, shuffle=True, seed=seed)
        for seed in (3, np.int64(3))
    )
    assert torch.equal(ours, numpys)


def test_cuda_is_refused_without_a_gpu(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", torch.device("cuda"), torch.device("cuda", 0)):
        with pytest.raises(LoaderError, match="torch finds no GPU; take cpu"):
            make_loader(tiny_store, everything(tiny_store), DATA, device=device)


def test_another_gpu_than_the_current_one_is_refused(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    message = (
        r"device is cuda:1, but a loader runs on the current CUDA device, 2; call "
        r"torch\.cuda\.set_device\(1\) first"
    )
    with pytest.raises(LoaderError, match=message):
        make_loader(tiny_store, everything(tiny_store), DATA, device="cuda:1")


def test_a_device_of_torch_is_taken(tiny_store: Store) -> None:
    positions, cpu = everything(tiny_store), torch.device("cpu")
    with make_loader(tiny_store, positions, DATA, device=cpu) as loader:
        assert next(iter(loader)).images_BCHW.device == cpu


@pytest.mark.parametrize("make_copy", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_cannot_be_copied_and_says_what_to_do(
    tiny_store: Store, make_copy: Callable[[DaliLoader], object]
) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        with pytest.raises(LoaderError, match="call make_loader in the process that"):
            make_copy(loader)
        assert len(list(loader)) == len(loader)


def test_a_closed_store_and_a_closed_loader_are_refused(tiny_store_path: Path) -> None:
    with Store(tiny_store_path) as store:
        slices_N = everything(store)
        loader = make_loader(store, slices_N, DATA)
        loader.close()
        loader.close()
        assert repr(loader).endswith("cpu, closed)")
        with pytest.raises(LoaderError, match="make another with make_loader"):
            next(iter(loader))
    with pytest.raises(StoreError, match="was closed; open it again"):
        make_loader(store, slices_N, DATA)


def test_closing_the_store_of_a_running_loader_is_an_error(
    tiny_store_path: Path,
) -> None:
    store = Store(tiny_store_path)
    with make_loader(store, everything(store), DATA) as loader:
        store.close()
        with pytest.raises(StoreError, match="was closed; open it again"):
            list(loader)


def test_a_failure_inside_dali_is_an_error_of_one_line(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_size(scale: Scale, _size: int) -> None:
        scale.size = 10**7  # more bytes per slice than a process may address

    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        monkeypatch.setattr(Scale, "set_size", set_size)
        with pytest.raises(LoaderError) as caught:
            list(loader)
    assert str(caught.value) == "the DALI pipeline failed: std::bad_alloc"


def test_one_epoch_at_a_time(tiny_store: Store) -> None:
    with make_loader(tiny_store, everything(tiny_store), DATA) as loader:
        earlier, later = loader.epoch(0), loader.epoch(1)
        next(earlier)
        next(later)
        with pytest.raises(LoaderError, match="another epoch of this loader was begun"):
            next(earlier)
        assert len(list(later)) == 4
        with pytest.raises(LoaderError, match="counted from 0, got epoch -1"):
            next(loader.epoch(-1))


def damage_by_cutting(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


def damage_by_deleting(shard: Path) -> None:
    shard.unlink()


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_deleting])
def test_a_shard_damaged_during_an_epoch_is_an_error_that_names_it(
    tiny_store_path: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    copied = Path(shutil.copytree(tiny_store_path, tmp_path / "store"))
    config = replace(DATA, batch_size=1)
    with (
        Store(copied) as store,
        make_loader(store, everything(store), config) as loader,
    ):
        batches = loader.epoch(0)
        first = next(batches)
        copy = first.images_BCHW.clone()
        damage(copied / "level-256" / "00001.npy")
        with pytest.raises(StoreError, match=r"level-256/00001\.npy"):
            list(batches)
        assert torch.equal(first.images_BCHW, copy)
        with pytest.raises(LoaderError, match="the loader is closed; make another"):
            next(loader.epoch(0))
