"""Weights: from a file into a model, and the ImageNet weights that timm publishes.

Promises:

1. No file can run code: only plain tensors are read.
2. Every tensor of the body comes from the file; a file that fits in part is an error.
   The log tells what is adapted: a first convolution for three channels is summed for
   one and repeated for others, as timm does, a head of another shape is left out, and
   fastai's names for mxresnet50 become ours.
3. ImageNet weights are downloaded once. Without a network they are refused within
   seconds, in one line that says what to do.

fastai v1's mxresnet50 with self-attention is one `nn.Sequential` of unnamed layers,
so the names of its tensors are numbers:

    fastai                        ours
    0, 1, 2                       stem.0, stem.2, stem.4       convolution 0, norm 1
    4 to 7                        stages.0 to stages.3
      B.convs.0, .1, .2             B.convs.0, .2, .4          of block B
      B.idconv                      B.shortcut.0 in stage 0, .1 in others, after a pool
      B.sa.gamma                    B.attention.gamma
      B.sa.conv.weight_orig         B.attention.conv.parametrizations.weight.original
      B.sa.conv.weight_u, _v        B.attention.conv.parametrizations.weight.0._u, ._v
    10                            fc

Activations and pools have numbers too, but no tensors. torch has two implementations
of spectral norm; both store the same three tensors.

Source:
    lessw2020/Ranger-Mish-ImageWoof-5, mxresnet.py; torch.nn.utils.spectral_norm.
"""

from __future__ import annotations

import logging
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors.torch
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError, first_line
from ichfast.models.torchfile import load_torch_file
from ichfast.models.xresnet import XResNet50Attn

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: Path, *, arch: str, head: str) -> None:
    """Load a file into a model.

    Args:
        model: changed in place.
        path: safetensors, or a torch file with a state dict, at its top or under
            ``model``; ours, timm's, or, for `XResNet50Attn`, that of fastai's
            mxresnet50.
        arch: the model's name, for messages.
        head: name of the model's last layer.

    Raises:
        ModelError: the file cannot be read, or does not fit.
    """
    found = read_tensors(path)
    if isinstance(model, XResNet50Attn) and is_fastai_mxresnet(found):
        found = from_fastai_mxresnet(found)
        logger.info("%s holds fastai's mxresnet50; its tensors are renamed", path)
    wanted = model.state_dict()
    _adapt_first_conv(found, model, path)
    _drop_other_head(found, wanted, f"{head}.", path)
    problems = [
        f"{name} is {_form(found[name])}, expected {_form(wanted[name])}"
        for name in found.keys() & wanted.keys()
        if _form(found[name]) != _form(wanted[name])
    ]
    if not problems:
        outcome = model.load_state_dict(found, strict=False)
        problems = [f"{name} is unknown" for name in outcome.unexpected_keys]
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


def _form(tensor: Tensor) -> str:
    """Shape of a tensor, and its kind where that is not float."""
    shape = str(tuple(tensor.shape))
    if tensor.layout != torch.strided:
        return f"{shape}, sparse"
    return shape if tensor.is_floating_point() else f"{shape} of another type"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, on the CPU.

    Raises:
        ModelError: there is no file, it is damaged, or it holds something else.
    """
    return tensors_of(read_weights_file(path), path)


def read_weights_file(path: Path) -> Any:
    """Read all that a file of weights holds, onto the CPU.

    Raises:
        ModelError: there is no file, it is damaged, or it could run code.
    """
    if not path.is_file():
        raise ModelError(f"no weights at {path}; --weights takes a file that exists")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return load_torch_file(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} was refused: it holds something other than plain tensors, which "
            "could run code, or is damaged; save a state dict or use safetensors"
        ) from error
    except Exception as error:  # torch raises almost any type on a damaged file
        raise ModelError(
            f"{path} is damaged or not a file of weights: {first_line(error)}"
        ) from error


def tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what a file of weights holds.

    Args:
        content: what `read_weights_file` returned.
        path: the file, for the message.

    Raises:
        ModelError: it is no state dict.
    """
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


def _adapt_first_conv(found: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    name, conv = next(
        (f"{name}.weight", module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    channels = conv.in_channels
    if channels == 3 or name not in found or found[name].shape[1:2] != (3,):
        return
    weight_OCHW = found[name].float()
    if channels == 1:
        found[name] = weight_OCHW.sum(dim=1, keepdim=True)
    else:  # equal slices give what an equal RGB image gives
        repeated_OCHW = weight_OCHW.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
        found[name] = repeated_OCHW * (3 / channels)
    how = "summed" if channels == 1 else "repeated"
    logger.info("first convolution of %s %s from 3 channels to %d", path, how, channels)


def _drop_other_head(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], head: str, path: Path
) -> None:
    shapes = {name: t.shape for name, t in found.items() if name.startswith(head)}
    if shapes == {name: t.shape for name, t in wanted.items() if name.startswith(head)}:
        return
    for name in shapes:
        del found[name]
    logger.info("head of %s has another shape; the new head starts random", path)


FASTAI_NAMES = frozenset({"0.0.weight", "4.0.convs.0.0.weight", "10.weight"})
"""Names by which a state dict of fastai's mxresnet is recognized."""

_SPECTRAL_NORM = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
"""Tensors of spectral norm: fastai's name, and ours in ``parametrizations.weight``."""


def is_fastai_mxresnet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of fastai's mxresnet."""
    return tensors.keys() >= FASTAI_NAMES


def from_fastai_mxresnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename fastai's tensors as in `XResNet50Attn`; other names are kept."""
    return {_rename(name): tensor for name, tensor in tensors.items()}


def _rename(name: str) -> str:
    match name.split("."):
        case [("0" | "1" | "2") as layer, part, leaf]:
            return f"stem.{2 * int(layer)}.{part}.{leaf}"
        case [("4" | "5" | "6" | "7") as layer, block, *rest]:
            stage = int(layer) - 4
            return f"stages.{stage}.{block}.{_rename_in_block(stage, rest)}"
        case ["10", leaf]:
            return f"fc.{leaf}"
        case _:
            return name


def _rename_in_block(stage: int, name: list[str]) -> str:
    match name:
        case ["convs", ("0" | "1" | "2") as conv, *rest]:
            return ".".join(["convs", str(2 * int(conv)), *rest])
        case ["idconv", *rest]:
            return ".".join(["shortcut", "1" if stage else "0", *rest])
        case ["sa", "conv", leaf] if leaf in _SPECTRAL_NORM:
            return f"attention.conv.parametrizations.weight.{_SPECTRAL_NORM[leaf]}"
        case ["sa", *rest]:
            return ".".join(["attention", *rest])
        case _:
            return ".".join(name)


CONNECT_TIMEOUT_S = 8.0
"""Longest wait for the server of pretrained weights to answer, seconds."""

HUB_FILE = "model.safetensors"
"""File of the weights in a timm repository on the Hugging Face hub."""


def fetch_pretrained(arch: str, timm_name: str | None) -> Path:
    """Download a backbone's ImageNet weights, unless they are in the cache.

    Args:
        arch: the backbone's name, for messages.
        timm_name: timm's model and, after the dot, its weights; None if there are
            none.

    Returns:
        The file of the weights.

    Raises:
        ModelError: there are none, or they cannot be downloaded.
    """
    if timm_name is None:
        raise ModelError(
            f"there are no published ImageNet weights for {arch}; "
            "leave out --pretrained, or give --weights FILE"
        )
    repository = f"timm/{timm_name}"
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    server = huggingface_hub.constants.ENDPOINT
    advice = (
        f"download {HUB_FILE} of {repository} elsewhere and give --weights FILE, "
        "or leave out --pretrained"
    )
    if not _is_reachable(server, CONNECT_TIMEOUT_S):
        raise ModelError(
            f"no pretrained weights for {arch}: {server} does not answer; {advice}"
        )
    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the exceptions of its HTTP client, of any type
        raise ModelError(
            f"no pretrained weights for {arch}: {first_line(error)}; {advice}"
        ) from error


def _is_reachable(url: str, timeout_s: float) -> bool:
    # The hub's client itself tries for 23 s or more, with a warning per attempt.
    # In a thread, because a DNS lookup takes no timeout.
    responded = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()  # an error page is a response
        except (OSError, HTTPException):
            return
        responded.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return responded.is_set()
