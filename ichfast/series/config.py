"""Settings of the series head: its layers, what it reads, and how it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ichfast.errors import RecipeError, unknown
from ichfast.recipes.settings import override

KINDS = ("gru", "transformer")
"""Networks that can read along a series."""

POSITIONS = ("ordinal", "z")
"""What the head reads as the position of a slice. ``ordinal``: 0 for the first slice
of the series, 1 for the last; ``z``: the distance from the middle of the series along
the normal."""

NUM_ATTENTION_HEADS = 4
"""Attention heads of the transformer."""

LIMITS = {
    **dict.fromkeys(("width", "hidden", "batch_size", "epochs"), (1, 2**31)),
    **dict.fromkeys(("noise", "weight_decay", "min_steps"), (0, 2**31)),
    "layers": (1, 16),
    "max_slices": (2, 2**31),
}
"""Lower and upper limits of settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesConfig:
    """How the series head is built and trained."""

    kind: str = "gru"
    """``gru`` (bidirectional) or ``transformer``."""

    width: int = 512
    """Numbers per slice after the first layer."""

    hidden: int = 256
    """Numbers per slice in each direction of the GRU. The transformer has twice as
    many, so that both kinds put out as many."""

    layers: int = 2
    """Layers of the GRU or transformer."""

    dropout: float = 0.2
    """Share of numbers that training sets to 0, between the layers and after them."""

    noise: float = 0.02
    """Standard deviation of the noise that training adds after the first layer, whose
    output has mean 0 and standard deviation 1."""

    slice_dropout: float = 0.02
    """Share of slices whose numbers training sets to 0 after the first layer."""

    element_dropout: float = 0.05
    """Share of numbers that training sets to 0 after the first layer."""

    deltas: bool = False
    """Also read how each slice differs from the slice before and from the one after."""

    position: str = "ordinal"
    """``ordinal`` or ``z``; see `POSITIONS`."""

    max_slices: int = 64
    """Slices of a series that the head reads. Those of a longer series are sampled
    evenly, and the logits between them are interpolated."""

    batch_size: int = 256
    """Series in a batch. A small set needs fewer: 8 for 76 series."""

    lr: float = 3e-4
    """Highest learning rate."""

    weight_decay: float = 1e-2
    """Decoupled weight decay."""

    warm_up: float = 0.05
    """Share of the steps, in [0, 1), in which the learning rate rises to `lr`."""

    epochs: int = 20
    """Number of epochs; more if `min_steps` needs them."""

    min_steps: int = 300
    """Lower limit of the number of steps."""

    seed: int = 42
    """Seed of weights, order, noise and dropout."""

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("position", POSITIONS)):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise RecipeError(unknown(f"series.{name}", found, known))
        for name, (lowest, highest) in LIMITS.items():
            if not lowest <= getattr(self, name) <= highest:
                raise RecipeError(
                    f"series.{name} is from {lowest} to {highest}, got "
                    f"{getattr(self, name)}"
                )
        for name in ("dropout", "slice_dropout", "element_dropout", "warm_up"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise RecipeError(
                    f"series.{name} must be in [0, 1), got {getattr(self, name)}"
                )
        if not self.lr > 0.0:
            raise RecipeError(f"series.lr must be above 0, got {self.lr}")
        if self.kind == "transformer" and 2 * self.hidden % NUM_ATTENTION_HEADS:
            raise RecipeError(
                "series.hidden of a transformer must be a multiple of "
                f"{NUM_ATTENTION_HEADS // 2}, got {self.hidden}"
            )
        if self.seed not in range(2**63):
            raise RecipeError(f"series.seed is from 0 to 2**63 - 1, got {self.seed}")

    def num_epochs(self, num_series: int) -> int:
        """Number of epochs that make `epochs` and `min_steps` true.

        Args:
            num_series: series that train, at least 1.
        """
        steps_per_epoch = -(-num_series // self.batch_size)
        return max(self.epochs, -(-self.min_steps // steps_per_epoch))


SMALL = SeriesConfig(
    width=128, hidden=64, layers=1, batch_size=8, lr=1e-3, epochs=40, min_steps=300
)
"""For some tens or hundreds of series."""

PRESETS = {"series": {"large": SeriesConfig(), "small": SMALL}}
"""Settings that can be chosen as a whole, as in ``series=small``."""

MIN_LARGE_SLICES = 50_000
"""Slices of a store from which its head is ``large`` without a choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesSettings:
    """All settings of ``train-series``, with the names of ``--set``."""

    series: SeriesConfig


def resolve_series(assignments: Sequence[str], *, num_slices: int) -> SeriesConfig:
    """Choose the settings for a store, and change some by name.

    Args:
        assignments: such as ``series=small`` or ``series.epochs=20``.
        num_slices: slices of the store, which decide what is not assigned.

    Raises:
        RecipeError: no such setting, or a value out of range.

    Example:
        >>> resolve_series(["series.kind=transformer"], num_slices=3000).batch_size
        8
    """
    name = "large" if num_slices >= MIN_LARGE_SLICES else "small"
    settings = SeriesSettings(series=PRESETS["series"][name])
    return override(settings, assignments, presets=PRESETS).series
