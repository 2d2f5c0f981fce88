"""xresnet50-attn is the reference's network, block by block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ichfast.models.build import build_model
from ichfast.models.xresnet import ResBlock, SimpleSelfAttention, XResNet50Attn

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def as_channels_last(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.contiguous(memory_format=torch.channels_last)


def test_xresnet_has_one_attention_at_the_end_of_its_first_stage() -> None:
    model = build_model("xresnet50-attn")
    found = [n for n, m in model.named_modules() if isinstance(m, SimpleSelfAttention)]
    assert found == ["stages.0.2.attention"]
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert len(blocks) == 3 + 4 + 6 + 3
    assert all(block.convs[-1][-1].weight.eq(0).all() for block in blocks)  # type: ignore[index]
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_xresnet_stages_have_the_sizes_and_channels_of_a_resnet() -> None:
    model = build_model("xresnet50-attn", in_chans=3)
    assert isinstance(model, XResNet50Attn)
    x_BCHW = model.stem(torch.randn(1, 3, 96, 64))
    shapes = [tuple(x_BCHW.shape[1:])]
    for stage in model.stages:
        x_BCHW = stage(x_BCHW)
        shapes.append(tuple(x_BCHW.shape[1:]))
    assert shapes == [
        (64, 24, 16), (256, 24, 16), (512, 12, 8), (1024, 6, 4), (2048, 3, 2)
    ]  # fmt: skip


def test_a_fresh_block_is_its_shortcut() -> None:
    block = ResBlock(8, 2, stride=1, attention=True).eval()
    x_BCHW = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(block(x_BCHW), nn.functional.mish(x_BCHW))


def test_a_shortcut_averages_before_it_convolves_and_rounds_up() -> None:
    block = ResBlock(8, 4, stride=2, attention=False)
    assert [type(m).__name__ for m in block.shortcut] == ["AvgPool2d", "Sequential"]
    assert block(torch.randn(2, 8, 5, 7)).shape == (2, 16, 3, 4)


def naive_attention(x_BCHW: Tensor, weight_CC: Tensor, gamma: Tensor) -> Tensor:
    """The reference's formula, slice by slice and position by position."""
    slices = []
    for x_CHW in x_BCHW:
        x_CN = x_CHW.flatten(1)
        columns = [weight_CC @ x_CN[:, n] for n in range(x_CN.shape[1])]
        product_CC = torch.stack(
            [torch.stack([(row * other).sum() for other in x_CN]) for row in x_CN]
        )
        o_CN = torch.stack([product_CC @ column for column in columns], dim=1)
        slices.append((gamma * o_CN + x_CN).view_as(x_CHW))
    return torch.stack(slices)


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last]
)
def test_attention_equals_the_naive_loop_in_value_and_gradient(
    memory_format: torch.memory_format,
) -> None:
    attention = SimpleSelfAttention(5).eval()
    nn.init.constant_(attention.gamma, 0.7)
    x_BCHW = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format)
    x_BCHW.requires_grad_()
    wanted = [x_BCHW, *attention.parameters()]
    cotangent_BCHW = torch.randn(2, 5, 3, 4)

    fast_BCHW = attention(x_BCHW)
    weight_CC = attention.conv.weight[:, :, 0]  # type: ignore[index]
    slow_BCHW = naive_attention(x_BCHW, weight_CC, attention.gamma)
    torch.testing.assert_close(fast_BCHW, slow_BCHW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.autograd.grad(fast_BCHW, wanted, cotangent_BCHW),
        torch.autograd.grad(slow_BCHW, wanted, cotangent_BCHW),
        rtol=1e-4,
        atol=1e-4,
    )


def test_attention_starts_as_the_identity() -> None:
    x_BCHW = torch.randn(2, 5, 3, 4)
    assert torch.equal(SimpleSelfAttention(5)(x_BCHW), x_BCHW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [56, 128])
def test_large_activations_do_not_overflow_half_precision(
    dtype: torch.dtype, size: int
) -> None:
    attention = SimpleSelfAttention(4).eval()
    nn.init.constant_(attention.gamma, 1e-8)
    x_BCHW = as_channels_last(300 + 100 * torch.randn(2, 4, size, size))
    x_BCN = x_BCHW.flatten(2)
    assert (x_BCN @ x_BCN.mT).abs().min() > torch.finfo(torch.float16).max

    expected_BCHW = attention(x_BCHW)
    with torch.autocast("cpu", dtype=dtype):
        half_BCHW = attention(x_BCHW.to(dtype))
    half_BCHW.float().sum().backward()
    assert half_BCHW.dtype == dtype
    assert expected_BCHW.abs().max() > 2 * x_BCHW.abs().max()  # attention matters
    error = (half_BCHW - expected_BCHW).abs().max() / expected_BCHW.abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    assert all(p.grad is not None and p.grad.isfinite().all() for p in
               attention.parameters())  # fmt: skip


def test_spectral_norm_holds_the_largest_singular_value_at_one() -> None:
    attention = SimpleSelfAttention(16)
    with torch.no_grad():
        attention.conv.parametrizations.weight.original.mul_(9)  # type: ignore[union-attr, operator]
    for _ in range(30):  # one power iteration per pass in training mode
        attention(torch.randn(1, 16, 2, 2))
    weight_CC = attention.eval().conv.weight[:, :, 0]  # type: ignore[index]
    assert torch.linalg.matrix_norm(weight_CC, ord=2).item() == pytest.approx(
        1, abs=0.02
    )


def test_evaluation_leaves_the_spectral_norm_alone() -> None:
    attention = SimpleSelfAttention(16).eval()
    before = {name: t.clone() for name, t in attention.state_dict().items()}
    attention(torch.randn(1, 16, 2, 2))
    assert all(torch.equal(t, before[n]) for n, t in attention.state_dict().items())


def test_half_precision_does_not_blur_the_spectral_norm() -> None:
    attention = SimpleSelfAttention(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(torch.randn(1, 64, 2, 2).bfloat16())
    u_C = attention.conv.parametrizations.weight[0]._u  # type: ignore[union-attr, index]
    assert u_C.norm().item() == pytest.approx(1, abs=1e-5)
