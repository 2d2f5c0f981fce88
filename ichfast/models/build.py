"""Models, built from the backbones of `models.config.ARCHS` or any classifier of timm.

Only this module builds with timm.

A built model promises:

1. It takes images (B, in_chans, H, W) and gives logits (B, K). A backbone of `ARCHS`
   takes any size from 64 pixels on, and channels-last images stay so in all its
   layers; a classifier of timm takes the size that it was built for.
2. Its logits are the product of its last layer's weights with its pooled features, and
   the bias (but for the concat-pool head, which has two layers).
3. Its body is random, or every tensor of it comes from one file
   (`models.weights.load_weights`; timm loads the ImageNet weights of ``timm:NAME``,
   and adapts them to channels and size).

Shape letters: B slices, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError, first_line, unknown
from ichfast.models.config import TIMM, Arch, find_arch, is_timm
from ichfast.models.weights import fetch_pretrained, load_weights
from ichfast.models.xresnet import XResNet50Attn


def build_model(
    arch: str,
    *,
    in_chans: int = 1,
    num_classes: int = 6,
    size: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
    head: str = "linear",
) -> nn.Module:
    """Build a backbone with its head, on the CPU, in float32 and channels-last.

    Args:
        arch: one of `models.config.ARCHS`, or ``timm:NAME``.
        in_chans: channels of the images.
        num_classes: K.
        size: side of the images, pixels, for which a classifier of timm is built and
            checked; None for its own size. The backbones of `ARCHS` take any.
        pretrained: start from timm's ImageNet weights, which are downloaded once.
        weights: start from this file instead, of a kind that
            `models.weights.load_weights` takes.
        head: one of `models.config.HEADS`.

    Returns:
        The model, in training mode; images (B, C, H, W) to logits (B, K).

    Raises:
        ModelError: an unknown name, settings that exclude each other, a classifier
            of timm that does not fit, weights that cannot be had, or weights that do
            not fit.

    Example:
        >>> import ichfast, torch
        >>> model = ichfast.build_model("efficientnet-b0", in_chans=3)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 6])
    """
    settings = find_arch(arch)
    if in_chans < 1:
        raise ModelError(f"a model takes at least 1 channel, got {in_chans}")
    if head not in settings.heads:
        raise ModelError(
            f"{arch} has no head {head!r}; use {' or '.join(settings.heads)}"
        )
    if pretrained and weights is not None:
        raise ModelError(
            f"both pretrained weights and {weights} were asked for; "
            "leave out --pretrained or --weights"
        )
    if is_timm(arch):
        wanted = _Classifier(arch, in_chans, num_classes, size)
        model = _build_timm(wanted, pretrained=pretrained)
    else:
        model = _build(settings, in_chans=in_chans, num_classes=num_classes)
        if head == "concat-pool":
            _set_concat_pool_head(model, num_classes)
        if pretrained:
            weights = fetch_pretrained(arch, settings.timm_name)
    if weights is not None:
        load_weights(model, weights, arch=arch, head=_head_name(model))
    return model.to(memory_format=torch.channels_last)


class Backbone(Protocol):
    """What training, features and reports use of a model, named as in timm.

    Every `torch.nn.Module` with these methods can be trained by
    `training.step.Stepper` and `training.trainer.Trainer`. They need `get_classifier`
    and images (B, C, H, W) to logits (B, 6) as `forward`; `pooled_features` and
    `report.activations.class_activations` need the other two.
    """

    def forward_features(self, images_BCHW: Tensor, /) -> Any:
        """The features before pooling; a map of shape (B, D, h, w) where there is one.

        A model whose maps are (B, h, w, D) has an attribute ``output_fmt``, ``NHWC``.
        """

    def forward_head(self, features: Any, /, *, pre_logits: bool = False) -> Tensor:
        """Pool features and classify them.

        Args:
            features: what `forward_features` returns.
            pre_logits: stop before the last layer, and return (B, D), not (B, K).
        """

    def get_classifier(self) -> nn.Module:
        """The layer that turns pooled features into logits."""


def pooled_features(model: Backbone, images_BCHW: Tensor) -> Tensor:
    """Compute what the last layer of a backbone sees, shape (B, D).

    Args:
        model: on the device of the images.
        images_BCHW: windowed and normalised images.
    """
    features = model.forward_features(images_BCHW)
    return model.forward_head(features, pre_logits=True).flatten(1)


def check_input(model: nn.Module, arch: str, *, in_chans: int, size: int) -> None:
    """Run one image through a classifier of timm, to see whether it fits.

    Args:
        model: on the CPU; left as it is.
        arch: its name, for messages.
        in_chans: channels of the image.
        size: side of the image, pixels.

    Raises:
        ModelError: the model takes no images of this size, or its logits are not its
            last layer's of its pooled features.
    """
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.rand(1, in_chans, size, size, generator=generator)
    backbone: Any = model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits_BK = model(images_BCHW)
            pooled_BD = pooled_features(backbone, images_BCHW)
    except Exception as error:  # each model has its own checks
        own_size = backbone.pretrained_cfg["input_size"][-1]
        raise ModelError(
            f"{arch} takes no images of {size}x{size} pixels: {first_line(error)}; "
            f"its own size is {own_size}; change --size (data.size, data.grow_from), "
            "or choose a backbone that takes any, such as timm:convnext_atto"
        ) from error
    finally:
        model.train(was_training)
    if not _is_linear(backbone.get_classifier(), pooled_BD, logits_BK):
        raise ModelError(
            f"{arch} has no pooled features: its logits are not those of one linear "
            "layer; choose another backbone, such as timm:convnext_atto"
        )


def _is_linear(head: object, pooled_BD: Tensor, logits_BK: Tensor) -> bool:
    """Whether logits are a head's product with pooled features, and its bias."""
    if not isinstance(head, nn.Linear | nn.Conv2d):
        return False
    weight_KD = head.weight.flatten(1)
    if pooled_BD.shape[1] != weight_KD.shape[1]:
        return False
    product_BK = nn.functional.linear(pooled_BD, weight_KD, head.bias)
    return torch.allclose(product_BK, logits_BK, rtol=1e-3, atol=1e-4)


def body_and_head(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters of a model for a phase with a frozen body.

    Batch norm trains even in a frozen body, so it counts as head here.

    Args:
        model: has `Backbone.get_classifier`.

    Returns:
        The body's parameters, to freeze, and all others, to train.

    Raises:
        ModelError: it has no such method.

    Source:
        fastai v1, `Learner.freeze_to` with `train_bn`.
    """
    trained = list(_head(model).parameters())
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
    _head(model).reset_parameters()  # type: ignore[operator]
    return model


@dataclass(frozen=True, slots=True)
class _Classifier:
    """What `build_model` asks of a classifier of timm."""

    arch: str
    in_chans: int
    num_classes: int
    size: int | None

    @property
    def name(self) -> str:
        """Its name in timm."""
        return self.arch.removeprefix(TIMM)


def _build_timm(wanted: _Classifier, *, pretrained: bool) -> nn.Module:
    config = _timm_config(wanted.name)
    size = wanted.size or config.input_size[-1]
    options: dict[str, Any] = {"img_size": size} if config.fixed_input_size else {}
    if pretrained:
        repository = config.hf_hub_id or ""
        is_timms = repository.startswith("timm/")
        path = fetch_pretrained(
            wanted.arch, repository.removeprefix("timm/") if is_timms else None
        )
        options["pretrained_cfg_overlay"] = {"file": str(path)}
    try:
        model: nn.Module = timm.create_model(
            wanted.name,
            pretrained=pretrained,
            in_chans=wanted.in_chans,
            num_classes=wanted.num_classes,
            **options,
        )
    except Exception as error:  # each model has its own checks
        raise ModelError(
            f"timm cannot build {wanted.name} for {wanted.in_chans} channels of "
            f"{size}x{size} pixels: {first_line(error)}; change --size, or choose "
            "another backbone"
        ) from error
    check_input(model, wanted.arch, in_chans=wanted.in_chans, size=size)
    return model


def _timm_config(name: str) -> Any:
    """Timm's record of a classifier's weights and input."""
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ModelError(
            f"timm {timm.__version__} has no classifier {model!r}; {hint}"
            "timm.list_models() has all names"
        )
    known = [each.partition(".")[2] for each in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in known:
        raise ModelError(unknown(f"weights of timm's {model}", tag, known or ["none"]))
    return timm.get_pretrained_cfg(name)


def _head(model: nn.Module) -> nn.Module:
    backbone: Any = model
    if not hasattr(model, "get_classifier"):
        raise ModelError(
            f"{type(model).__name__} has no method get_classifier, which returns its "
            "last layer; add it, as in ichfast.models.Backbone"
        )
    head: nn.Module = backbone.get_classifier()
    return head


def _head_name(model: nn.Module) -> str:
    head = _head(model)
    return next(name for name, module in model.named_modules() if module is head)


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
