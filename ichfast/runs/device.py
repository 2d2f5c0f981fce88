"""The device of a run, and how many slices it predicts at once.

The device is a GPU if both torch and DALI can use one, else the CPU. Prediction needs
no gradients and no optimizer, so a GPU holds more slices than in training, and larger
batches are faster. The largest batch that fits is found by trying.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from ichfast.errors import DeviceError
from ichfast.loading.dali import gpu_problem
from ichfast.models.precision import Amp

logger = logging.getLogger(__name__)

CPU_COST = (
    "training on the whole RSNA set needs a GPU; here expect a few slices per second, "
    "in float32; for a trial use --limit 200"
)
"""Advice that goes with the choice of the CPU."""

MAX_BATCH_SIZE = 1024
"""Largest batch that is tried; larger ones do not make a GPU faster."""

LOADER_BATCHES = 4
"""Batches that the loader holds next to the one that is computed."""

STORED_BYTES = 2 * 512 * 512
"""Bytes of a stored slice on its way to the GPU."""


def choose_device(name: str) -> torch.device:
    """Choose the device, and log which and why.

    On a GPU, cuDNN then times its kernels for each new shape of a convolution and
    keeps the fastest. Shapes are the same in all steps of an epoch.

    Args:
        name: ``auto``, ``cuda`` or ``cpu``.

    Raises:
        DeviceError: ``cuda`` cannot be used.
    """
    if name == "cpu":
        logger.info("device: cpu, as asked; %s", CPU_COST)
        return torch.device("cpu")
    problem = _problem()
    if problem is None:
        device = torch.device("cuda", torch.cuda.current_device())
        torch.backends.cudnn.benchmark = True
        logger.info("device: %s", torch.cuda.get_device_name(device))
        return device
    if name == "cuda":
        raise DeviceError(f"cannot use a GPU: {problem}; use --device cpu")
    logger.warning("device: cpu, because %s; %s", problem, CPU_COST)
    return torch.device("cpu")


def _problem() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    problem = gpu_problem()
    return f"DALI cannot use the GPU ({problem})" if problem else None


def double_while(fits: Callable[[int], bool]) -> int:
    """Find the largest batch size that fits, among 1, 2, 4, ... `MAX_BATCH_SIZE`.

    Args:
        fits: tries a batch size; called with rising sizes until it returns False.

    Returns:
        0 if not even one slice fits.
    """
    batch_size, trial = 0, 1
    while trial <= MAX_BATCH_SIZE and fits(trial):
        batch_size, trial = trial, 2 * trial
    return batch_size


def largest_batch_on_gpu(
    model: nn.Module, image_shape: tuple[int, int, int], amp: Amp
) -> int:
    """Find how many slices the GPU that holds a model can predict at once.

    Args:
        model: on a CUDA device, in evaluation mode.
        image_shape: channels, rows, columns of an image.
        amp: number format.

    Raises:
        DeviceError: not even one slice fits.
    """
    device = next(model.parameters()).device

    def fits(batch_size: int) -> bool:
        try:
            _try_batch(model, batch_size, image_shape, amp)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    times_kernels = torch.backends.cudnn.benchmark
    # Each trial is a new shape, for which cuDNN would time all its kernels.
    torch.backends.cudnn.benchmark = False
    try:
        batch_size = double_while(fits)
    finally:
        torch.backends.cudnn.benchmark = times_kernels
    if batch_size == 0:
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has no room for a single slice; "
            "end other programs that use its memory, or use --device cpu"
        )
    logger.info("batch size: %d slices", batch_size)
    return batch_size


@torch.inference_mode()
def _try_batch(
    model: nn.Module, batch_size: int, image_shape: tuple[int, int, int], amp: Amp
) -> None:
    """Predict a batch of zeros, with the loader's share of the memory taken."""
    device = next(model.parameters()).device
    shape = (batch_size, *image_shape)
    image_bytes = 2 * torch.Size(shape).numel()
    held = torch.empty(
        LOADER_BATCHES * (image_bytes + batch_size * STORED_BYTES),
        dtype=torch.uint8,
        device=device,
    )
    images_BCHW = torch.zeros(shape, dtype=amp.dtype, device=device)
    with amp.autocast():
        model(images_BCHW.to(memory_format=torch.channels_last))
    torch.cuda.synchronize(device)
    del held
