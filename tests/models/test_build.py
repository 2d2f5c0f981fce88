"""Backbones are built as published, in both memory formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError
from ichfast.models.build import ConcatPool, body_and_head, build_model
from ichfast.models.config import ARCHS

OLD_HEAD_2048 = 2048 * 1000 + 1000
NEW_HEAD_2048 = 2048 * 6 + 6
RESNET50 = 25_557_032
RESNET50_STEM = 7 * 7 * 3 * 64 + 2 * 64
XRESNET_STEM = 9 * (3 * 32 + 32 * 64 + 64 * 64) + 2 * (32 + 64 + 64)
NUM_PARAMETERS = {
    "efficientnet-b0": 5_288_548 - 1_281_000 + 1280 * 6 + 6,
    "xresnet50-attn": (
        RESNET50 - RESNET50_STEM - OLD_HEAD_2048  # body
        + XRESNET_STEM + 256 * 256 + 1 + NEW_HEAD_2048
    ),
    "res2net50": 25_699_120 - OLD_HEAD_2048 + NEW_HEAD_2048,
    "resnext50": 25_028_904 - OLD_HEAD_2048 + NEW_HEAD_2048,
}  # fmt: skip
"""With three channels and six classes, from the published 1,000-class figures."""

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")
every_arch = pytest.mark.parametrize("arch", ARCHS)


def as_channels_last(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.contiguous(memory_format=torch.channels_last)


# --------------------------------------------------------------------- the model


@pytest.mark.slow
@pytest.mark.parametrize("arch", NUM_PARAMETERS)
def test_a_model_has_the_published_number_of_parameters(
    arch: str, built: dict[str, nn.Module]
) -> None:
    three = build_model(arch, in_chans=3)
    assert sum(p.numel() for p in three.parameters()) == NUM_PARAMETERS[arch]
    one = built[arch].state_dict()
    other = [
        name for name, t in three.state_dict().items() if t.shape != one[name].shape
    ]
    assert len(other) == 1
    assert other[0].startswith(("conv_stem.", "conv1.", "stem.0."))


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("size", [64, 65, 512])
def test_a_model_takes_any_size(
    arch: str, size: int, built: dict[str, nn.Module]
) -> None:
    with torch.inference_mode():
        logits_BK = built[arch](as_channels_last(torch.randn(1, 1, size, size)))
    assert logits_BK.shape == (1, 6)
    assert logits_BK.isfinite().all()


@every_arch
def test_channels_last_images_give_the_same_logits(
    arch: str, built: dict[str, nn.Module]
) -> None:
    images_BCHW = torch.randn(2, 1, 64, 72)
    with torch.inference_mode():
        plain_BK = built[arch](images_BCHW)
        last_BK = built[arch](as_channels_last(images_BCHW))
    torch.testing.assert_close(last_BK, plain_BK, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@every_arch
def test_a_model_exports(arch: str, built: dict[str, nn.Module]) -> None:
    images_BCHW = as_channels_last(torch.randn(2, 1, 64, 64))
    with torch.no_grad():
        exported = torch.export.export(built[arch], (images_BCHW,)).module()
        torch.testing.assert_close(exported(images_BCHW), built[arch](images_BCHW))


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("in_chans", [1, 3])
def test_channels_last_images_stay_channels_last(arch: str, in_chans: int) -> None:
    model = build_model(arch, in_chans=in_chans)
    strayed: list[str] = []

    def check(name: str, output: Any) -> None:
        if (
            isinstance(output, Tensor)
            and output.ndim == 4
            and not output.is_contiguous(memory_format=torch.channels_last)
        ):
            strayed.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(lambda *args, n=name: check(n, args[2]))
    model(torch.randn(2, 64, 64, in_chans).permute(0, 3, 1, 2))
    assert strayed == []


@pytest.mark.slow
@every_arch
def test_three_steps_move_every_parameter(arch: str) -> None:
    # Gammas of 0 block gradients: the last batch norm of a block moves in the first
    # step, the layers before it and attention's gamma in the second, attention's W in
    # the third.
    model = build_model(arch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images_BCHW = as_channels_last(torch.randn(4, 1, 64, 64))
    for _ in range(3):
        optimizer.zero_grad()
        model(images_BCHW).square().sum().backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert all(p.isfinite().all() for p in model.parameters())


def test_efficientnet_drops_features_and_blocks() -> None:
    model = build_model("efficientnet-b0")
    paths = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert model.drop_rate == 0.2
    assert 0.15 < max(float(str(p)) for p in paths) < 0.2  # rises from block to block


@pytest.mark.parametrize("arch", ["efficientnet-b0", "res2net50", "resnext50"])
def test_the_last_layer_starts_as_a_linear_layer_of_torch(arch: str) -> None:
    model = build_model(arch)
    head = model.get_submodule("classifier" if "efficient" in arch else "fc")
    assert isinstance(head, nn.Linear)
    limit = head.in_features**-0.5
    assert 0.99 * limit < float(head.weight.detach().abs().max()) <= limit
    assert 0 < float(head.bias.detach().abs().max()) <= limit


def test_efficientnet_pads_and_normalizes_as_in_tensorflow() -> None:
    """``same``: the output has ceil(side / stride) pixels; an odd pad is at the end."""
    model = build_model("efficientnet-b0").eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}
    assert len(norms) == 49
    strided = {
        name: conv
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2)
    }
    assert len(strided) == 5
    for conv in strided.values():
        kernel = conv.kernel_size[0]
        for side in (56, 57):
            images_BCHW = torch.randn(1, conv.in_channels, side, side)
            total = max((-(-side // 2) - 1) * 2 + kernel - side, 0)
            before, after = total // 2, total - total // 2
            padded_BCHW = nn.functional.pad(images_BCHW, (before, after) * 2)
            expected_BCHW = nn.functional.conv2d(
                padded_BCHW, conv.weight, stride=2, groups=conv.groups
            )
            torch.testing.assert_close(conv(images_BCHW), expected_BCHW)


def test_res2net_splits_26_channels_four_ways() -> None:
    block = build_model("res2net50").get_submodule("layer1.0")
    assert [block.width, block.scale] == [26, 4]


def test_the_concat_pool_head_is_that_of_fastai() -> None:
    model = build_model("resnext50", head="concat-pool")
    head = model.get_submodule("fc")
    kinds = [type(module).__name__ for module in head.children()]
    assert kinds == [
        "BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"
    ]  # fmt: skip
    assert [m.p for m in head.children() if isinstance(m, nn.Dropout)] == [0.25, 0.5]
    linears = [m for m in head.children() if isinstance(m, nn.Linear)]
    assert [linear.in_features for linear in linears] == [4096, 512]
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 6)


def test_concat_pool_puts_the_maximum_before_the_mean() -> None:
    features_BCHW = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
    assert ConcatPool()(features_BCHW).tolist() == [[6.0, 3.0]]


# --------------------------------------------------------------- frozen-body phases


@every_arch
def test_body_and_head_divide_the_parameters_and_batch_norm_trains(arch: str) -> None:
    model = build_model(arch)
    body, trained = body_and_head(model)
    ids = [id(p) for p in body + trained]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    trained_ids = {id(p) for p in trained}
    (head,) = [m for m in model.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = [*head.parameters(), *(p for norm in norms for p in norm.parameters())]
    assert trained_ids == {id(p) for p in expected}
    assert len(norms) > 40


def test_batch_norm_of_the_concat_pool_head_is_counted_once() -> None:
    body, trained = body_and_head(build_model("resnext50", head="concat-pool"))
    assert len({id(p) for p in body + trained}) == len(body + trained)


# ------------------------------------------------------------------------ errors


def test_an_unknown_arch_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(ModelError, match="did you mean resnext50") as caught:
        build_model("resnet50x")
    assert all(arch in str(caught.value) for arch in ARCHS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_chans": 0}, "takes at least 1 channel, got 0"),
        ({"head": "concat-pool"}, "efficientnet-b0 has no head 'concat-pool'"),
        ({"pretrained": True, "weights": Path("w.pth")}, "both pretrained weights and"),
    ],
)
def test_settings_that_make_no_model_are_errors(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_model("efficientnet-b0", **settings)
