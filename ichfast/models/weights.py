"""Weights from a file into a model.

Promises:

1. No file can run code: only plain tensors are read.
2. Every tensor of the body comes from the file; a file that fits in part is an
   error. What is fitted is said in the log: a first convolution for three channels
   is summed for one, a head of another shape gives way to the new one, and fastai's
   names for mxresnet50 become ours.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ichfast.errors import ModelError, first_line
from ichfast.fastai_keys import from_fastai_mxresnet, is_fastai_mxresnet
from ichfast.models.torchfile import load_torch_file
from ichfast.models.xresnet import XResNet50Attn

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: Path, *, arch: str, head: str) -> None:
    """Load a file into a model.

    Args:
        model: what it is loaded into.
        path: safetensors, or what `torch.save` wrote of a state dict or of a
            checkpoint with one under ``model``; ours, timm's, or, for
            `XResNet50Attn`, that of fastai's mxresnet50.
        arch: the model's name, for messages.
        head: the name of its last layer.

    Raises:
        ModelError: the file cannot be read, or does not fit.
    """
    found = read_tensors(path)
    if isinstance(model, XResNet50Attn) and is_fastai_mxresnet(found):
        found = from_fastai_mxresnet(found)
        logger.info("%s holds fastai's mxresnet50; its tensors are renamed", path)
    wanted = model.state_dict()
    _sum_first_conv(found, model, path)
    _drop_other_head(found, wanted, f"{head}.", path)
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
            if not name.startswith(f"{head}.")  # a head is whole or left out
        ]
    if problems:
        raise ModelError(
            f"{path} does not fit {arch}: {'; '.join(sorted(problems)[:3])}"
            f"{f'; and {len(problems) - 3} more' if len(problems) > 3 else ''}"
            "; give --weights of the same --arch and head"
        )
    logger.info("%s starts from %d tensors of %s", arch, len(found), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, on the CPU.

    Raises:
        ModelError: there is no file, it is damaged, or holds something else.
    """
    if not path.is_file():
        raise ModelError(f"no weights at {path}; --weights takes a file that exists")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = load_torch_file(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} was refused: it holds something else than plain tensors, which "
            "could run code, or is damaged; save a state dict or use safetensors"
        ) from error
    except Exception as error:  # torch raises nearly anything on a damaged file
        raise ModelError(
            f"{path} is damaged or not a file of weights: {first_line(error)}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor)
        for name, tensor in content.items()
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
        found[name] = found[name].float().sum(dim=1, keepdim=True)
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
