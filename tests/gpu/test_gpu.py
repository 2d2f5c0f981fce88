"""On a GPU: the loader's promises, agreement with the CPU, and a training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ichfast.augment import AugmentConfig
from ichfast.device import choose_device
from ichfast.ensemble import predict_runs
from ichfast.loader import DataConfig, make_loader
from ichfast.recipes import resolve_recipe
from ichfast.runs import train_run
from ichfast.store import Store
from tests.contracts import check_loader

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
    with make_loader(
        tiny_store, slices_N, config, augment=AUGMENT, shuffle=shuffle, device="cuda"
    ) as loader:
        check_loader(loader, slices_N.tolist(), batch_size=6, shuffle=shuffle)
        assert next(iter(loader)).images_BCHW.device.type == "cuda"


@pytest.mark.parametrize("level", [512, 256])
def test_gpu_and_cpu_draw_and_apply_the_same(tiny_store: Store, level: int) -> None:
    config = DataConfig(
        size=level // 2,
        batch_size=9,
        level=level,
        windows=("brain", "subdural", "bone"),
    )
    images = {}
    for device in ("cpu", "cuda"):
        with make_loader(
            tiny_store, np.arange(18), config, augment=AUGMENT, device=device
        ) as loader:
            batches = [batch.images_BCHW.float().cpu() for batch in loader]
            images[device] = torch.cat(batches)
    difference = (images["cpu"] - images["cuda"]).abs()
    # The CPU interpolates in steps of 1/32 pixel, the GPU does not.
    assert difference.mean() < 0.01
    assert difference.quantile(0.99) < 2 / 32


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


def test_a_step_never_waits_for_the_gpu(tmp_path: Path) -> None:
    from ichfast.amp import choose_amp
    from ichfast.batch import Batch
    from ichfast.models import build_model
    from ichfast.train import Phase, TrainConfig, Trainer

    device = choose_device("cuda")
    trainer = Trainer(
        build_model("resnext50").to(device),
        TrainConfig(phases=(Phase(epochs=1, lr=1e-3, optimizer="adam"),)),
        amp=choose_amp("auto", device),
        run_dir=tmp_path,
        name_slices=lambda indices_B: [str(k) for k in indices_B],
    )
    trainer._start_phase(trainer.phases[0], 10, 0)
    images = torch.randn(8, 1, 64, 64, device=device, dtype=torch.float16)
    batch = Batch(images, torch.zeros(8, 6, device=device), torch.arange(8))
    trainer.step(batch, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            trainer.step(batch, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
