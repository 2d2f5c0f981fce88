"""The backbones by name, and the settings of a model.

A new backbone is one entry of `ARCHS`: command line, recipes, benchmark and tests take
the names from there. ``timm:NAME`` is any classifier of timm, without an entry. This
module loads neither torch nor timm, so that settings can be read and shown without
them; whether timm has the name, `models.build.build_model` checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ichfast.errors import ModelError, RecipeError, unknown

HEADS = ("linear", "concat-pool")
"""``linear``: average pool, one linear layer. ``concat-pool``: fastai's head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arch:
    """How a backbone is built."""

    timm_name: str | None
    """timm's model and, after the dot, its weights; None for `XResNet50Attn`, which
    has no published weights."""

    timm_options: Mapping[str, float] = field(default_factory=dict)
    """Further arguments of `timm.create_model`."""

    heads: tuple[str, ...] = ("linear",)
    """The heads of `HEADS` that it can have."""


ARCHS: dict[str, Arch] = {
    "efficientnet-b0": Arch(
        timm_name="tf_efficientnet_b0.aa_in1k",
        timm_options={"drop_rate": 0.2, "drop_path_rate": 0.2, "bn_momentum": 0.01},
    ),
    "xresnet50-attn": Arch(timm_name=None),
    "res2net50": Arch(timm_name="res2net50_26w_4s.in1k"),
    "resnext50": Arch(timm_name="resnext50_32x4d.tv_in1k", heads=HEADS),
}
"""The backbones by name.

resnext50 takes torchvision's weights, as in the reference. efficientnet-b0 is the
published network, which the reference took from efficientnet_pytorch: TensorFlow's
``same`` padding, batch norm with epsilon 1e-3 and momentum 0.01, dropout and drop
connect of 0.2, and the weights of July 2019, trained with AutoAugment. timm's
``efficientnet_b0`` has the same names and shapes, but pads evenly and has epsilon 1e-5:
its weights load, and give other logits.
"""

TIMM = "timm:"
"""Prefix of a backbone's name that is a classifier of timm, with the tag of its weights
if any: ``timm:convnext_atto.d2_in1k``."""


def is_timm(arch: str) -> bool:
    """Whether a backbone is named as a classifier of timm."""
    return arch.startswith(TIMM)


def find_arch(name: str) -> Arch:
    """Find how a backbone is built.

    Args:
        name: one of `ARCHS`, or ``timm:NAME``, which may still be unknown to timm.

    Raises:
        ModelError: an unknown name.
    """
    if is_timm(name):
        return Arch(timm_name=name.removeprefix(TIMM))
    if name not in ARCHS:
        raise ModelError(unknown("architecture", name, [*ARCHS, f"{TIMM}NAME"]))
    return ARCHS[name]


PRETRAINED = ("yes", "try", "no")
"""``yes``: ImageNet weights, or an error if they cannot be had; ``try``: ImageNet
weights, or a warning and random ones; ``no``: random weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network of a run, and the weights it starts from."""

    arch: str
    """One of `ARCHS`, or ``timm:NAME``."""

    head: str = "linear"
    """One of `HEADS`."""

    pretrained: str = "no"
    """One of `PRETRAINED`."""

    weights: str = ""
    """A file to start from: safetensors, or a checkpoint of another run."""

    def __post_init__(self) -> None:
        try:
            find_arch(self.arch)
        except ModelError as error:
            raise RecipeError(str(error)) from error
        if self.pretrained not in PRETRAINED:
            raise RecipeError(
                f"model.pretrained is yes, try or no, got {self.pretrained!r}"
            )
