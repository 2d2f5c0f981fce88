"""What was predicted of a study, and what predicted it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ichfast.pacs.instances import Instance


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was predicted of one class in a study."""

    class_name: str
    probability: float
    """Probability of the study, in [0, 1]."""

    peak: Instance
    """The slice with the highest probability."""

    peak_probability: float
    threshold: float | None
    """From which a slice is called positive; None where the run has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """What predicted."""

    digests: Sequence[str]
    """SHA-256 of each checkpoint."""

    settings: Mapping[str, object]
    """How it predicted, such as ``tta``."""

    @property
    def parameters(self) -> list[str]:
        """Its parameters as texts."""
        return [
            *(f"checkpoint sha256:{digest}" for digest in self.digests),
            *(f"{name}={value}" for name, value in self.settings.items()),
        ]
