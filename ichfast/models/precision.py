"""The number format of a model, as data rather than branches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ichfast.errors import RecipeError

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
"""Number formats by name."""


@dataclass(frozen=True, slots=True)
class Amp:
    """Automatic mixed precision on one kind of device."""

    device_type: str
    """``cpu`` or ``cuda``."""

    dtype: torch.dtype
    """Format of the convolutions; float32 switches autocast off."""

    @property
    def needs_scaler(self) -> bool:
        """Whether the loss must be scaled, as float16 gradients underflow otherwise."""
        return self.dtype is torch.float16

    def autocast(self) -> torch.autocast:
        """The context in which a model runs."""
        return torch.autocast(
            self.device_type,
            dtype=self.dtype if self.dtype is not torch.float32 else None,
            enabled=self.dtype is not torch.float32,
        )


def choose_amp(name: str, device: torch.device) -> Amp:
    """Choose the number format, by name or as the best of the device.

    Args:
        name: ``bf16``, ``fp16``, ``fp32``, or ``auto``: bfloat16 if the GPU has it,
            else float16; float32 on a CPU.
        device: where the model runs.

    Raises:
        RecipeError: an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise RecipeError(f"train.amp is auto, {', '.join(DTYPES)}; got {name!r}")
        return Amp(device.type, DTYPES[name])
    if device.type == "cpu":
        return Amp("cpu", torch.float32)
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Amp(device.type, torch.bfloat16 if has_bf16 else torch.float16)
