"""The graph on a GPU stays within the bounds of the NumPy reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ichfast.store.store import Store
from tests.loading.difficult_slices import SLICES, write_adversaries
from tests.loading.graph_checks import AUGMENTS, FIVE_SLICES, WINDOWS, check_graph
from tests.loading.lighting_graph import lit_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

OF_ONE_SHAPE = ("ramp to the right", "checkerboard of a window", "impulses", "ramp up")
OF_ANY_SHAPE = ("edges of windows", "638x490", "71x73", "1x300")
NUMBERS = [(256, 224), (512, 224), (256, 512), (512, 512)]
"""Levels of the store, and sizes of the images."""


@pytest.fixture(scope="module")
def one_shape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of difficult slices of 512x512, in one series."""
    path = tmp_path_factory.mktemp("one") / "store"
    write_adversaries(path, [SLICES[name] for name in OF_ONE_SHAPE], slices_a_series=4)
    with Store(path) as store:
        yield store


@pytest.fixture(scope="module")
def any_shape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store of difficult slices that differ in shape."""
    path = tmp_path_factory.mktemp("any") / "store"
    write_adversaries(path, [SLICES[name] for name in OF_ANY_SHAPE])
    with Store(path) as store:
        yield store


@pytest.fixture(scope="module")
def real(
    real_slices: list[npt.NDArray[np.uint16]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Store]:
    """A store of the competition's slices."""
    path = tmp_path_factory.mktemp("real") / "store"
    write_adversaries(path, real_slices[:4], slices_a_series=4)
    with Store(path) as store:
        yield store


@pytest.mark.parametrize(("level", "size"), NUMBERS)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_every_preset_and_window_stays_within_the_bounds(
    one_shape: Store, augment: str, windows: str, level: int, size: int
) -> None:
    config = replace(WINDOWS[windows], size=size, level=level, batch_size=4)
    check_graph(one_shape, config, AUGMENTS[augment], device="cuda")


@pytest.mark.parametrize("size", [224, 512])
@pytest.mark.parametrize("cache", ["none", "device"])
def test_a_slab_of_five_slices_stays_within_the_bounds(
    one_shape: Store, cache: str, size: int
) -> None:
    config = replace(FIVE_SLICES, size=size, level=512, batch_size=3, cache=cache)
    check_graph(one_shape, config, AUGMENTS["everything"], device="cuda")


@pytest.mark.parametrize(("level", "size"), NUMBERS)
@pytest.mark.parametrize("cache", ["none", "host", "device"])
@pytest.mark.parametrize("windows", WINDOWS)
def test_every_cache_stays_within_the_bounds(
    one_shape: Store, cache: str, windows: str, level: int, size: int
) -> None:
    config = replace(
        WINDOWS[windows], size=size, level=level, batch_size=2, cache=cache
    )
    check_graph(one_shape, config, AUGMENTS["everything"], device="cuda")


@pytest.mark.parametrize(("level", "size"), NUMBERS)
@pytest.mark.parametrize("name", ["any_shape", "real"])
def test_slices_of_any_shape_and_of_patients_stay_within_the_bounds(
    request: pytest.FixtureRequest, name: str, level: int, size: int
) -> None:
    store: Store = request.getfixturevalue(name)
    config = replace(WINDOWS["linear"], size=size, level=level, batch_size=3)
    check_graph(store, config, AUGMENTS["everything"], device="cuda")


def test_gpu_and_cpu_light_to_the_same_step_or_the_next() -> None:
    """The GPU may round a product and a sum together, the CPU rounds each."""
    logit_V = np.linspace(-16.1, 16.1, 9_973, dtype=np.float32)
    contrast_B = np.array([0.8, 1.0, 1.25, 99.0], np.float32)
    brightness_B = np.array([0.4, 0.0, -0.3, 5.0], np.float32)
    on_cpu, on_gpu = (
        lit_steps(logit_V, contrast_B, brightness_B, device=device).astype(int)
        for device in ("cpu", "cuda")
    )
    assert abs(on_cpu - on_gpu).max() <= 1
