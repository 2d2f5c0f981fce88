"""The peers, by name: what people use today for the same work.

Each gets the same slices, the same distributions of augmentations and the settings that
its documentation recommends. Each gives the same shape and type, and takes every
shortcut that is open to it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from bench.harness.measure import BenchError


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """The stage and the needs of a peer."""

    stage: str
    packages: tuple[str, ...]
    """Modules that must be importable."""

    module: str
    """Module of its code."""

    install: str = "pip install 'ichfast[bench]'"
    """How to install them, for messages."""


PEERS: dict[str, Peer] = {
    "pydicom-npy": Peer(
        stage="prepare", packages=("pydicom",), module="bench.peers.converters"
    ),
    "png-converter": Peer(
        stage="prepare", packages=("pydicom", "PIL"), module="bench.peers.converters"
    ),
    "torchvision": Peer(
        stage="loader", packages=("torchvision",), module="bench.peers.torchvision_v2"
    ),
    "albumentations": Peer(
        stage="loader",
        packages=("albumentations",),
        module="bench.peers.albumentations_compose",
    ),
    "monai": Peer(
        stage="loader", packages=("monai",), module="bench.peers.monai_arrays"
    ),
    "grid-sample": Peer(
        stage="loader", packages=("torch",), module="bench.peers.grid_sample"
    ),
    "fastai-png": Peer(
        stage="loader", packages=("PIL",), module="bench.peers.fastai_png"
    ),
    "dali-numpy": Peer(
        stage="loader", packages=("nvidia.dali",), module="bench.peers.dali_numpy"
    ),
    "zstd": Peer(
        stage="packed", packages=("imagecodecs",), module="bench.peers.compressors"
    ),
    "blosc2": Peer(
        stage="packed", packages=("imagecodecs",), module="bench.peers.compressors"
    ),
    "timm-step": Peer(
        stage="train", packages=("timm",), module="bench.peers.timm_step"
    ),
    "ffcv": Peer(
        stage="loader",
        packages=("ffcv",),
        module="bench.peers.ffcv_arrays",
        install="it has no wheel; bench/README.md shows how to build it",
    ),
}


def parse_peers(text: str) -> tuple[str, ...]:
    """Read ``all``, ``none`` or names with commas between them.

    Raises:
        BenchError: A name is unknown.
    """
    if text in ("all", "none"):
        return tuple(PEERS) if text == "all" else ()
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in PEERS:
            raise BenchError(
                f"unknown peer {name!r}; --peers takes all, none, or names of "
                f"{', '.join(PEERS)} with commas between them"
            )
    return names


def reason_to_skip(name: str) -> str:
    """Explain why a peer cannot be measured here; empty if it can."""
    peer = PEERS[name]
    absent = [p for p in peer.packages if importlib.util.find_spec(p) is None]
    if absent:
        return f"{', '.join(absent)} is not installed; {peer.install}"
    return ""


def peers_of(stage: str, names: tuple[str, ...]) -> list[str]:
    """Choose the peers of a stage.

    Args:
        stage: One of `bench.stages.STAGES`.
        names: Names of `PEERS` to choose from.
    """
    return [name for name in names if PEERS[name].stage == stage]
