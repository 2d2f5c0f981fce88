"""A module of one's own trains if it has the methods of `models.build.Backbone`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError
from ichfast.models import Backbone
from ichfast.models.build import pooled_features
from ichfast.report.activations import class_activations
from ichfast.training.checkpoint import BEST, PATIENTS, SETTINGS, load_checkpoint
from ichfast.training.step import Stepper
from ichfast.training.trainer import Trainer
from tests.training.tiny_trainer import CONFIG, CPU, FakeLoader


class OwnNet(nn.Module):
    """Three layers and the methods of the protocol; nothing of timm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.ReLU())
        self.last = nn.Linear(8, 6)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images_BCHW))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        features_BDhw: Tensor = self.body(images_BCHW)
        return features_BDhw

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        pooled_BD = features.mean(dim=(2, 3))
        if pre_logits:
            return pooled_BD
        logits_BK: Tensor = self.last(pooled_BD)
        return logits_BK

    def get_classifier(self) -> nn.Module:
        return self.last


def train(model: nn.Module, run_dir: Path) -> Trainer:
    trainer = Trainer(
        Stepper(model, replace(CONFIG, ema_decay=0.0), amp=CPU),
        run_dir=run_dir,
        name_slices=lambda indices: [f"ID_{int(k)}" for k in indices],
        saved_with={SETTINGS: "", PATIENTS: ""},
    )
    trainer.fit(FakeLoader(shuffle=True), FakeLoader(shuffle=False))
    return trainer


def test_an_own_module_trains_saves_and_is_explained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = OwnNet()
    backbone: Backbone = model
    trainer = train(model, tmp_path)
    losses = [row["valid_loss"] for row in trainer.history]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert load_checkpoint(tmp_path / BEST)["model"].keys() == model.state_dict().keys()
    images_BCHW = torch.randn(3, 1, 32, 32)
    pooled_BD = pooled_features(backbone, images_BCHW)
    torch.testing.assert_close(model.last(pooled_BD), model(images_BCHW))
    maps_BKhw = class_activations(backbone, images_BCHW)
    assert maps_BKhw is not None
    assert maps_BKhw.shape == (3, 6, 7, 7)


def test_a_module_without_a_named_last_layer_is_refused_in_one_line(
    tmp_path: Path,
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 6))
    with pytest.raises(ModelError, match="Sequential has no method get_classifier, wh"):
        train(model, tmp_path)
