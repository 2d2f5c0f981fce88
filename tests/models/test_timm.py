"""Any classifier of timm is a backbone, or is refused in a line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from ichfast.errors import ModelError
from ichfast.models.build import (
    body_and_head,
    build_model,
    check_input,
    pooled_features,
)
from ichfast.models.config import ARCHS
from ichfast.report.activations import class_activations

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")

SIZE = 64
NAMES = (
    *("convnext_atto", "convnextv2_atto"),
    *("maxvit_rmlp_pico_rw_256", "maxvit_tiny_tf_512"),
    *("vit_tiny_patch16_224", "test_vit"),
    *("tf_efficientnetv2_b0", "efficientnetv2_rw_t"),
    *("swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"),
    *("resnext101_32x4d", "seresnext26d_32x4d"),
)
"""Two classifiers of each of six families."""

TOKENS = ("vit_tiny_patch16_224", "test_vit")
"""Those that end in tokens instead of a map."""


@pytest.mark.slow
@pytest.mark.parametrize("in_chans", [1, 3, 9])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_product_of_the_head_and_the_pooled_features(
    name: str, in_chans: int
) -> None:
    model: Any = build_model(f"timm:{name}", in_chans=in_chans, size=SIZE).eval()
    images_BCHW = torch.randn(2, in_chans, SIZE, SIZE)
    head = model.get_classifier()
    with torch.inference_mode():
        logits_BK = model(images_BCHW)
        pooled_BD = pooled_features(model, images_BCHW)
        product_BK = pooled_BD @ head.weight.T + head.bias
    assert logits_BK.shape == (2, 6)
    assert not torch.equal(logits_BK[0], logits_BK[1])
    torch.testing.assert_close(product_BK, logits_BK, rtol=1e-3, atol=1e-5)
    body, trained = body_and_head(model)
    assert {id(p) for p in head.parameters()} <= {id(p) for p in trained}
    assert sum(p.numel() for p in body) > sum(p.numel() for p in trained)
    maps_BKhw = class_activations(model, images_BCHW)
    if name in TOKENS:
        assert maps_BKhw is None
    else:
        assert maps_BKhw is not None
        assert maps_BKhw.shape == (2, 6, 2, 2)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.slow
def test_the_backbones_of_the_reference_have_pooled_features_too(arch: str) -> None:
    model: Any = build_model(arch).eval()
    images_BCHW = torch.randn(2, 1, SIZE, SIZE)
    with torch.inference_mode():
        pooled_BD = pooled_features(model, images_BCHW)
        torch.testing.assert_close(
            model.get_classifier()(pooled_BD), model(images_BCHW)
        )


@pytest.mark.slow
def test_the_map_of_a_backbone_with_channels_last_maps_is_the_weighted_sum() -> None:
    model: Any = build_model("timm:swin_tiny_patch4_window7_224", size=SIZE).eval()
    images_BCHW = torch.randn(1, 1, SIZE, SIZE)
    maps_BKhw = class_activations(model, images_BCHW)
    with torch.no_grad():
        features_BhwD = model.forward_features(images_BCHW)
        weight_KD = model.get_classifier().weight
        evidence = torch.einsum("kd,bhwd->bkhw", weight_KD, features_BhwD) / 4
    assert maps_BKhw is not None
    torch.testing.assert_close(maps_BKhw, evidence.relu(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Weights of timm's test_vit, as its hub would have them; returns the tensors."""
    tensors = timm.create_model("test_vit").state_dict()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "ichfast.models.build.fetch_pretrained",
        lambda _arch, _timm_name: tmp_path / "model.safetensors",
    )
    return tensors


def test_published_weights_are_adapted_to_channels_and_size_by_timm(
    published: dict[str, Any],
) -> None:
    state = build_model(
        "timm:test_vit", in_chans=9, size=SIZE, pretrained=True
    ).state_dict()
    patches = published["patch_embed.proj.weight"]
    expected = patches.repeat(1, 3, 1, 1) / 3
    torch.testing.assert_close(state["patch_embed.proj.weight"], expected)
    assert state["pos_embed"].shape != published["pos_embed"].shape
    assert state["head.weight"].shape[0] == 6
    same = [name for name in state if torch.equal(state[name], published[name][:])]
    assert len(same) == len(state) - 4  # also the head's bias


def test_a_file_for_three_channels_is_repeated_for_nine(tmp_path: Path) -> None:
    three = timm.create_model("test_convnext").state_dict()
    torch.save(three, tmp_path / "weights.pth")
    model = build_model(
        "timm:test_convnext", in_chans=9, size=SIZE, weights=tmp_path / "weights.pth"
    )
    nine = model.state_dict()["stem.0.weight"]
    assert nine.shape[1] == 9
    torch.testing.assert_close(nine, three["stem.0.weight"].repeat(1, 3, 1, 1) / 3)


def test_a_backbone_that_is_built_leaves_the_random_numbers_and_mode_alone() -> None:
    model = build_model("timm:test_convnext", size=SIZE)
    assert model.training
    before = torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_input(model, "timm:test_convnext", in_chans=1, size=96)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_ato", "no classifier 'convnext_ato'; did you mean convnext_atto"),
        ("hf-hub:timm/test_vit", "no classifier 'hf-hub:timm/test_vit'"),
        ("test_vit.in22k", r"weights of timm's test_vit 'in22k'; .*r160_in1k"),
        ("crossvit_9_240", "takes no images of 64x64 .* own size is 240; change"),
        ("efficientformer_l1", "takes no images of 64x64 .* own size is 224; change"),
        ("deit_tiny_distilled_patch16_224", "has no pooled features: its logits are"),
        ("repvit_m0_9", "has no pooled features: its logits are not"),
    ],
)
def test_a_name_that_does_not_fit_is_refused_in_one_line(
    name: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build_model(f"timm:{name}", size=SIZE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_built_backbone_of_fixed_size_takes_no_other() -> None:
    arch = "timm:vit_tiny_patch16_224"
    model = build_model(arch, size=SIZE)
    with pytest.raises(ModelError, match=r"takes no images of 96x96 pixels: .*96.*64"):
        check_input(model, arch, in_chans=1, size=96)


def test_a_backbone_whose_features_are_a_list_has_no_map() -> None:
    model: Any = build_model("timm:coat_tiny", size=SIZE).eval()
    assert class_activations(model, torch.randn(1, 1, SIZE, SIZE)) is None
