"""Models, built from the backbones of `models.config.ARCHS`.

Only this module builds with timm.

A built model promises:

1. It takes images (B, in_chans, H, W) of any size from 64 pixels on and gives
   logits (B, K). Its weights are channels-last, and channels-last images stay so in
   all its layers.
2. Its body is random, or every tensor of it comes from one file
   (`models.weights.load_weights`).

Shape letters: B slices, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError, unknown
from ichfast.models.config import ARCHS, Arch
from ichfast.models.weights import fetch_pretrained, load_weights
from ichfast.models.xresnet import XResNet50Attn


def build_model(
    arch: str,
    *,
    in_chans: int = 1,
    num_classes: int = 6,
    pretrained: bool = False,
    weights: Path | None = None,
    head: str = "linear",
) -> nn.Module:
    """Build a backbone with its head, on the CPU, in float32 and channels-last.

    Args:
        arch: one of `models.config.ARCHS`.
        in_chans: channels of the images, 1 or 3.
        num_classes: K.
        pretrained: start from timm's ImageNet weights, which are downloaded once.
        weights: start from this file instead, of a kind that
            `models.weights.load_weights` takes.
        head: one of `models.config.HEADS`.

    Returns:
        The model, in training mode; images (B, C, H, W) to logits (B, K).

    Raises:
        ModelError: an unknown name, settings that exclude each other, weights
            that cannot be had, or weights that do not fit.

    Example:
        >>> import ichfast, torch
        >>> model = ichfast.build_model("efficientnet-b0", in_chans=3)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 6])
    """
    if arch not in ARCHS:
        raise ModelError(unknown("arch", arch, ARCHS))
    settings = ARCHS[arch]
    if in_chans not in (1, 3):
        raise ModelError(f"a model takes 1 or 3 channels, got {in_chans}")
    if head not in settings.heads:
        raise ModelError(
            f"{arch} has no head {head!r}; use {' or '.join(settings.heads)}"
        )
    if pretrained and weights is not None:
        raise ModelError(
            f"both pretrained weights and {weights} were asked for; "
            "leave out --pretrained or --weights"
        )
    model = _build(settings, in_chans=in_chans, num_classes=num_classes)
    if head == "concat-pool":
        _set_concat_pool_head(model, num_classes)
    if pretrained:
        weights = fetch_pretrained(arch, settings.timm_name)
    if weights is not None:
        load_weights(model, weights, arch=arch, head=_head_name(model))
    return model.to(memory_format=torch.channels_last)


def body_and_head(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters of a built model for a phase with a frozen body.

    Batch norm trains even in a frozen body, so it counts as head here.

    Returns:
        The body's parameters, to freeze, and all others, to train.

    Source:
        fastai v1, `Learner.freeze_to` with `train_bn`.
    """
    head_module = model.get_submodule(_head_name(model))
    trained = list(head_module.parameters())
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            trained += module.parameters(recurse=False)
    trained_ids = {id(parameter) for parameter in trained}
    body = [p for p in model.parameters() if id(p) not in trained_ids]
    return body, [p for p in model.parameters() if id(p) in trained_ids]


def synchronize_batch_norm(model: nn.Module) -> nn.Module:
    """Compute batch norm's statistics over all ranks; works on GPUs only.

    Returns:
        The network of `model`, with the same names and weights; `model` itself must
        not be used any more.
    """
    synchronized: nn.Module = timm.layers.convert_sync_batchnorm(model)
    return synchronized


class ConcatPool(nn.Module):
    """Pools the positions by maximum and by mean, and concatenates both."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Shape (B, 2 C): C maxima, then C means."""
        return torch.cat(
            [features_BCHW.amax(dim=(2, 3)), features_BCHW.mean(dim=(2, 3))], dim=1
        )


def _build(settings: Arch, *, in_chans: int, num_classes: int) -> nn.Module:
    if settings.timm_name is None:
        return XResNet50Attn(in_chans=in_chans, num_classes=num_classes)
    model: nn.Module = timm.create_model(
        settings.timm_name,
        pretrained=False,
        in_chans=in_chans,
        num_classes=num_classes,
        **settings.timm_options,
    )
    # As in the reference. timm draws EfficientNet's last layer 15 times as wide.
    model.get_submodule(_head_name(model)).reset_parameters()  # type: ignore[operator]
    return model


def _head_name(model: nn.Module) -> str:
    return "classifier" if hasattr(model, "classifier") else "fc"


def _set_concat_pool_head(model: nn.Module, num_classes: int) -> None:
    # Source: fastai v1, `create_head` with its defaults; Kaiming-initialized.
    old_head = model.get_submodule("fc")
    assert isinstance(old_head, nn.Linear)
    num_features = 2 * old_head.in_features
    linears = nn.Linear(num_features, 512), nn.Linear(512, num_classes)
    for linear in linears:
        nn.init.kaiming_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
    model.global_pool = ConcatPool()
    model.fc = nn.Sequential(
        nn.BatchNorm1d(num_features),
        nn.Dropout(0.25),
        linears[0],
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        linears[1],
    )
