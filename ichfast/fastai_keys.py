"""fastai v1's mxresnet50 with self-attention, tensor by tensor, as ours.

That network is one `nn.Sequential` of unnamed layers, so its names are numbers:

    fastai                        ours
    0, 1, 2                       stem.0, stem.2, stem.4       convolution 0, norm 1
    4 to 7                        stages.0 to stages.3
      B.convs.0, .1, .2             B.convs.0, .2, .4          of block B
      B.idconv                      B.shortcut.0 in stage 0, .1 behind the pool after
      B.sa.gamma                    B.attention.gamma
      B.sa.conv.weight_orig         B.attention.conv.parametrizations.weight.original
      B.sa.conv.weight_u, _v        B.attention.conv.parametrizations.weight.0._u, ._v
    10                            fc

Activations and pools have numbers too, and no tensors. The two ways of torch to keep
a spectral norm hold the same three tensors.

Source:
    lessw2020/Ranger-Mish-ImageWoof-5, mxresnet.py; torch.nn.utils.spectral_norm.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MARKS = frozenset({"0.0.weight", "4.0.convs.0.0.weight", "10.weight"})
"""Names by which a state dict of that network is known."""

_SPECTRAL_NORM = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}


def is_fastai_mxresnet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of fastai's mxresnet."""
    return tensors.keys() >= MARKS


def from_fastai_mxresnet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of `models.xresnet.XResNet50Attn`.

    Args:
        tensors: a state dict of fastai's mxresnet50; a name that is not in the
            table above is kept.
    """
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
