"""The reference's mxresnet50 with one simple self-attention, which timm does not have.

It differs from a ResNet-50 in this:

1. The stem is three 3x3 convolutions, to 32, 64 and 64 channels.
2. Every activation is Mish.
3. The last batch norm of each block starts at gamma 0, so a block starts as its
   shortcut.
4. A shortcut that halves the size averages 2x2 (rounding up) before its 1x1
   convolution, so no position is skipped.
5. One `SimpleSelfAttention` is in the last block of the first stage, on the
   convolution branch before the residual addition.

Channels-last images stay channels-last in all layers.

Source:
    lessw2020/mish (mxresnet), sdoria/SimpleSelfAttention, He et al. 2018,
    "Bag of Tricks for Image Classification", arXiv:1812.01187.

Shape letters: B slices, C channels, H rows, W columns, N = H x W positions,
K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

STEM_CHANNELS = (32, 64, 64)
"""Output channels of the three convolutions of the stem."""

BLOCKS_PER_STAGE = (3, 4, 6, 3)
"""Blocks of each stage, as in ResNet-50."""

STAGE_WIDTHS = (64, 128, 256, 512)
"""Channels in the middle of a block, per stage, as in ResNet-50."""

EXPANSION = 4
"""Output channels of a block, as a multiple of the channels in its middle."""


class SimpleSelfAttention(nn.Module):
    """``gamma (x x^T)(W x) + x`` over the N positions of each slice.

    W is a spectral-normed 1x1 convolution without bias; gamma is one number that
    starts at 0. Computed as ``(gamma x x^T W + 1) x``, it takes two passes over the
    positions, and the C x C matrix in the middle is cheap in float32.

    ``x x^T`` and a product of the backward pass are sums of N terms, which overflow
    float16 long before N = 16,384 (a 512-pixel slice), so float16 is converted to
    float32 here. bfloat16 has the range of float32 and is kept.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv1d(channels, channels, kernel_size=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        self.conv = spectral_norm(conv)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Attend; the result has the same shape and dtype and is channels-last."""
        B, C, H, W = x_BCHW.shape
        N = H * W
        x_BNC = x_BCHW.permute(0, 2, 3, 1).reshape(B, N, C)  # no copy: channels-last
        if x_BNC.dtype == torch.float16:
            x_BNC = x_BNC.float()
        with torch.autocast(x_BCHW.device.type, enabled=False):
            mean_product_BCC = torch.baddbmm(
                x_BNC.new_zeros(()), x_BNC.mT, x_BNC, beta=0, alpha=1 / N
            )
            weight_CC1 = self.conv.weight
            assert isinstance(weight_CC1, Tensor)
            weight_CC = weight_CC1[:, :, 0].float()
            # Transposed, because x^T is in memory; the product is symmetric.
            mixing_BCC = weight_CC.T @ mean_product_BCC.float() * (self.gamma * N)
            out_BNC = torch.baddbmm(x_BNC, x_BNC, mixing_BCC.to(x_BNC.dtype))
        out_BHWC = out_BNC.to(x_BCHW.dtype).view(B, H, W, C)
        return out_BHWC.permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """A bottleneck: 1x1, 3x3, 1x1, attention if any, shortcut, Mish.

    Args:
        channels_in: input channels.
        width: channels in the middle; the output has `EXPANSION` times as many.
        stride: 2 halves rows and columns, rounding up.
        attention: put a `SimpleSelfAttention` on the convolution branch.
    """

    def __init__(
        self, channels_in: int, width: int, *, stride: int, attention: bool
    ) -> None:
        super().__init__()
        channels_out = width * EXPANSION
        self.convs = nn.Sequential(
            _conv(channels_in, width, kernel_size=1),
            nn.Mish(),
            _conv(width, width, kernel_size=3, stride=stride),
            nn.Mish(),
            _conv(width, channels_out, kernel_size=1, batch_norm_weight=0.0),
        )
        self.attention = (
            SimpleSelfAttention(channels_out) if attention else nn.Identity()
        )
        shortcut: list[nn.Module] = []
        if stride == 2:
            shortcut.append(nn.AvgPool2d(2, ceil_mode=True))
        if channels_in != channels_out:
            shortcut.append(_conv(channels_in, channels_out, kernel_size=1))
        self.shortcut = nn.Sequential(*shortcut)
        self.act = nn.Mish()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape (B, 4 x width, ceil(H / stride), ceil(W / stride))."""
        branch_BCHW = self.attention(self.convs(x_BCHW))
        out_BCHW: Tensor = self.act(branch_BCHW + self.shortcut(x_BCHW))
        return out_BCHW


class XResNet50Attn(nn.Module):
    """mxresnet50 with attention and a linear head, Kaiming-initialized.

    Args:
        in_chans: channels of the images.
        num_classes: K.
    """

    def __init__(self, *, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.stem = _make_stem(in_chans)
        stages = []
        channels = STEM_CHANNELS[-1]
        for stage, num_blocks in enumerate(BLOCKS_PER_STAGE):
            blocks = []
            for block in range(num_blocks):
                blocks.append(
                    ResBlock(
                        channels,
                        STAGE_WIDTHS[stage],
                        stride=2 if stage > 0 and block == 0 else 1,
                        attention=stage == 0 and block == num_blocks - 1,
                    )
                )
                channels = STAGE_WIDTHS[stage] * EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.kaiming_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, shape (B, K)."""
        return self.forward_head(self.forward_features(images_BCHW))

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """The last feature map, shape (B, 2048, ceil(H / 32), ceil(W / 32))."""
        features_BCHW: Tensor = self.stages(self.stem(images_BCHW))
        return features_BCHW

    def forward_head(
        self, features_BCHW: Tensor, *, pre_logits: bool = False
    ) -> Tensor:
        """Pool a feature map and classify it, as timm's models do.

        Args:
            features_BCHW: what `forward_features` returns.
            pre_logits: stop before the last layer.

        Returns:
            Logits, shape (B, K), or pooled features, shape (B, 2048).
        """
        pooled_BC = self.pool(features_BCHW).flatten(1)
        outputs: Tensor = pooled_BC if pre_logits else self.fc(pooled_BC)
        return outputs

    def get_classifier(self) -> nn.Linear:
        """The last layer, as timm's models name it."""
        return self.fc


def _make_stem(in_chans: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = in_chans
    for index, channels_out in enumerate(STEM_CHANNELS):
        stride = 2 if index == 0 else 1
        layers += [
            _conv(channels, channels_out, kernel_size=3, stride=stride),
            nn.Mish(),
        ]
        channels = channels_out
    return nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))


def _conv(
    channels_in: int,
    channels_out: int,
    *,
    kernel_size: int,
    stride: int = 1,
    batch_norm_weight: float = 1.0,
) -> nn.Sequential:
    conv = nn.Conv2d(
        channels_in,
        channels_out,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight)
    norm = nn.BatchNorm2d(channels_out)
    nn.init.constant_(norm.weight, batch_norm_weight)
    return nn.Sequential(conv, norm)
