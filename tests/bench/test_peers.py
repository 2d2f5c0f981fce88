"""What ichfast is measured against keeps the promises that ichfast keeps."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bench.peers import PEERS, reason_to_skip
from bench.peers.task import LoaderTask, relight
from ichfast.augment.config import EXP_30, AugmentConfig
from ichfast.loading.config import DataConfig
from ichfast.windows import PRESETS, Normalization
from tests.loading.contracts import check_loader, order_of
from tests.store.slice_store import simple_rows, write_slices

NUM_SLICES, BATCH_SIZE = 23, 5


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 slices of 48x40, labelled at random."""
    path = tmp_path_factory.mktemp("peers") / "store"
    rng = np.random.default_rng(3)
    slices = list(rng.integers(1000, 1150, (NUM_SLICES, 48, 40)).astype(np.uint16))
    labels_NK = rng.integers(0, 2, (NUM_SLICES, 6))
    write_slices(path, slices, simple_rows(NUM_SLICES), labels_NK)
    return path


def make_task(
    store_path: Path, files: Path, slices_N: npt.NDArray[np.int64], *, shuffle: bool
) -> LoaderTask:
    return LoaderTask(
        store_path=store_path,
        positions_N=slices_N,
        data=DataConfig(level=512, size=32, batch_size=BATCH_SIZE),
        window=PRESETS["brain"],
        normalization=Normalization(mean=(0.2,), std=(0.5,)),
        augment=EXP_30,
        workers=0,
        device="cpu",
        png_dir=files / "png",
        npy_dir=files / "npy",
        beton_dir=files / "beton",
        shuffle=shuffle,
    )


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("name", [n for n in PEERS if PEERS[n].stage == "loader"])
def test_a_peer_is_a_loader_like_any_other(
    store_path: Path, tmp_path: Path, name: str, *, shuffle: bool
) -> None:
    if reason := reason_to_skip(name):
        pytest.skip(f"{name}: {reason}")
    if name == "dali-numpy":
        pytest.skip("dali-numpy: its reader has no epoch to ask for, nor a batch")
    slices_N = np.arange(NUM_SLICES)[1:]  # so that positions are not 0, 1, 2
    task = make_task(store_path, tmp_path, slices_N, shuffle=shuffle)
    peer = import_module(PEERS[name].module).make(task)
    try:
        check_loader(
            peer,
            slices_N.tolist(),
            batch_size=BATCH_SIZE,
            shuffle=shuffle,
            repeats_images=name == "grid-sample",
        )
    finally:
        peer.close()


def test_peers_change_brightness_then_contrast_as_fastai_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the largest change of 0.5, brightness is log 3 and contrast 2."""
    monkeypatch.setattr("random.uniform", lambda _, high: high)
    value_1SS = torch.linspace(0.01, 0.99, 99).reshape(1, 9, 11)
    expected_1SS = 1 / (1 + (value_1SS / (1 - value_1SS) * 3) ** -2)
    augment = AugmentConfig(max_lighting=0.5, lighting_probability=1.0)
    torch.testing.assert_close(relight(value_1SS.clone(), augment), expected_1SS)


def test_dalis_reader_gives_each_slice_once_if_all_batches_are_full(
    store_path: Path, tmp_path: Path
) -> None:
    slices_N = np.arange(2, 2 + 3 * BATCH_SIZE)
    task = make_task(store_path, tmp_path, slices_N, shuffle=True)
    peer = import_module(PEERS["dali-numpy"].module).make(task)
    try:
        for epoch in range(2):
            assert sorted(order_of(list(peer.epoch(epoch)))) == slices_N.tolist()
    finally:
        peer.close()
