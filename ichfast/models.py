"""The four backbones by name, and the weights they start from.

What a built model promises:

1. It takes images (B, in_chans, H, W) of any size from 64 pixels on and gives
   logits (B, K); its weights are channels-last, and it keeps channels-last
   images channels-last to the end.
2. Its body is random, or every tensor of it comes from one file; a file that
   fits in part is an error. Two things are fitted, and said in the log: a first
   convolution for three channels is summed for one, and a head of another shape
   gives way to the new one.
3. No file can run code: only plain tensors are read.
4. Without a network, `pretrained` fails within seconds and says what to do.

Only this module imports timm.

Shape letters: B slices, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import difflib
import logging
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError
from ichfast.xresnet import XResNet50Attn

logger = logging.getLogger(__name__)

HEADS = ("linear", "concat-pool")
"""``linear``: average pool, one linear layer. ``concat-pool``: fastai's head."""

CONNECT_TIMEOUT_S = 8.0
"""How long the server of pretrained weights may take to answer, seconds."""

HUB_FILE = "model.safetensors"
"""The weights in a timm repository on the Hugging Face hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arch:
    """What stands behind a name of `ARCHS`."""

    timm_name: str | None
    """timm's model and, after the dot, weights; None: written here, no weights."""

    timm_options: Mapping[str, float] = field(default_factory=dict)
    """What timm's model is built with beside channels and classes."""

    heads: tuple[str, ...] = ("linear",)
    """The heads of `HEADS` it can have."""


ARCHS: dict[str, Arch] = {
    "efficientnet-b0": Arch(
        timm_name="efficientnet_b0.ra_in1k",
        timm_options={"drop_rate": 0.2, "drop_path_rate": 0.2},
    ),
    "xresnet50-attn": Arch(timm_name=None),
    "res2net50": Arch(timm_name="res2net50_26w_4s.in1k"),
    "resnext50": Arch(timm_name="resnext50_32x4d.tv_in1k", heads=HEADS),
}
"""The backbones by name. resnext50 takes torchvision's weights, as the reference."""


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
        arch: a name of `ARCHS`.
        in_chans: channels of the images, 1 or 3.
        num_classes: K.
        pretrained: start from timm's ImageNet weights; needs a network, once.
        weights: start from this file instead: safetensors, or what `torch.save`
            wrote of a state dict or of a checkpoint with one under ``model``.
        head: a name of `HEADS`.

    Returns:
        The model, in training mode; images (B, C, H, W) to logits (B, K).

    Raises:
        ModelError: an unknown name, settings that exclude each other, weights
            that cannot be had, or weights that do not fit.
    """
    settings = _find_arch(arch)
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
        weights = _fetch_pretrained(arch, settings)
    if weights is not None:
        _load_weights(model, weights, arch)
    return model.to(memory_format=torch.channels_last)


def body_and_head(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a model's parameters for a phase with a frozen body.

    Batch norm trains in a frozen body, so it counts as head here.

    Args:
        model: what `build_model` returned.

    Returns:
        The body's parameters, to freeze; and the rest, to train. Together all.

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
    """Let batch norm take its statistics over all ranks; on GPUs only.

    Args:
        model: what `build_model` returned; not to be used any more.

    Returns:
        The same network; names and weights stay.
    """
    synchronized: nn.Module = timm.layers.convert_sync_batchnorm(model)
    return synchronized


class ConcatPool(nn.Module):
    """The maximum and the mean over the positions, one behind the other."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Shape (B, 2 C): C maxima, then C means."""
        return torch.cat(
            [features_BCHW.amax(dim=(2, 3)), features_BCHW.mean(dim=(2, 3))], dim=1
        )


def _find_arch(arch: str) -> Arch:
    if arch in ARCHS:
        return ARCHS[arch]
    near = difflib.get_close_matches(arch, ARCHS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ModelError(f"unknown arch {arch!r}; {hint}known are {', '.join(ARCHS)}")


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
    return model


def _head_name(model: nn.Module) -> str:
    return "classifier" if hasattr(model, "classifier") else "fc"


def _set_concat_pool_head(model: nn.Module, num_classes: int) -> None:
    # Source: fastai v1, `create_head` with its defaults; Kaiming-initialised.
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


def _load_weights(model: nn.Module, path: Path, arch: str) -> None:
    found = _read_tensors(path)
    wanted = model.state_dict()
    _sum_first_conv(found, model, path)
    head = f"{_head_name(model)}."
    _drop_other_head(found, wanted, head, path)
    problems = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(wanted[name].shape)}"
        for name in found.keys() & wanted.keys()
        if found[name].shape != wanted[name].shape
    ]
    if not problems:
        outcome = model.load_state_dict(found, strict=False)
        problems = [f"{name} is not known here" for name in outcome.unexpected_keys]
        problems += [
            f"{name} is missing"
            for name in outcome.missing_keys
            if not name.startswith(head)  # a head is whole or left out
        ]
    if problems:
        raise ModelError(
            f"{path} does not fit {arch}: {'; '.join(sorted(problems)[:3])}"
            f"{f'; and {len(problems) - 3} more' if len(problems) > 3 else ''}"
            "; give --weights of the same --arch and head"
        )
    logger.info("%s starts from %d tensors of %s", arch, len(found), path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights at {path}; --weights takes a file that exists")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} was refused: it holds something else than plain tensors, which "
            "could run code, or is damaged; save a state dict or use safetensors"
        ) from error
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise ModelError(
            f"{path} is damaged or not a file of weights: {_first_line(error)}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(
        isinstance(tensor, Tensor) for tensor in content.values()
    ):
        raise ModelError(
            f"{path} holds no state dict, at its top or under 'model'; "
            "save one with torch.save(model.state_dict(), PATH)"
        )
    return dict(content)


def _sum_first_conv(found: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    name, conv = next(
        (f"{name}.weight", module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    if name in found and conv.in_channels == 1 and found[name].shape[1] == 3:
        found[name] = found[name].sum(dim=1, keepdim=True)
        logger.info("first convolution of %s summed from 3 channels to 1", path)


def _drop_other_head(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], head: str, path: Path
) -> None:
    shapes = {name: t.shape for name, t in found.items() if name.startswith(head)}
    if shapes == {name: t.shape for name, t in wanted.items() if name.startswith(head)}:
        return
    for name in shapes:
        del found[name]
    logger.info("head of %s is of another shape; the new head starts random", path)


def _fetch_pretrained(arch: str, settings: Arch) -> Path:
    if settings.timm_name is None:
        raise ModelError(
            f"nobody has published ImageNet weights for {arch}; "
            "leave out --pretrained, or give --weights FILE"
        )
    repository = f"timm/{settings.timm_name}"
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    server = huggingface_hub.constants.ENDPOINT
    advice = (
        f"download {HUB_FILE} of {repository} elsewhere and give --weights FILE, "
        "or leave out --pretrained"
    )
    if not _answers(server, CONNECT_TIMEOUT_S):
        raise ModelError(
            f"no pretrained weights for {arch}: {server} does not answer; {advice}"
        )
    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # its HTTP client's own, of any kind
        raise ModelError(
            f"no pretrained weights for {arch}: {_first_line(error)}; {advice}"
        ) from error


def _answers(url: str, timeout_s: float) -> bool:
    # The hub's client tries for 23 s and more, with a warning for every attempt.
    # A thread, because a name look-up takes no timeout.
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()  # an error page is an answer
        except (OSError, HTTPException):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
