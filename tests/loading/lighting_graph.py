"""A DALI graph with only the lighting: the steps of the grid that logits become.

Shape letters: B slices, V logits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from nvidia.dali import Pipeline, fn

from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import draw
from ichfast.loading.graph import DRAWN_FEEDS, _step_of


def lit_steps(
    logit_V: npt.NDArray[np.float32],
    contrast_B: npt.NDArray[np.float32],
    brightness_B: npt.NDArray[np.float32],
    *,
    device: str = "cpu",
) -> npt.NDArray[np.uint16]:
    """Light the same logits with the contrast and brightness of each slice.

    Args:
        logit_V: float32.
        contrast_B: factors in logit space.
        brightness_B: offsets in logit space.
        device: ``cpu``, or ``cuda`` for the first CUDA device.

    Returns:
        Steps, shape (B, V).
    """
    count = len(contrast_B)
    drawn = draw(
        AugmentConfig(),
        seed=0,
        epoch=0,
        slices_B=np.arange(count),
        source_shape_B2=np.full((count, 2), 64.0),
        size=64,
    )
    drawn = replace(drawn, contrast_B=contrast_B, brightness_B=brightness_B)
    logits = np.broadcast_to(logit_V[:, np.newaxis], (count, 1, len(logit_V), 1)).copy()
    on_gpu = device != "cpu"
    pipe = Pipeline(count, num_threads=1, device_id=0 if on_gpu else None)
    with pipe:
        logit = fn.external_source(source=[logits], layout="HWC")
        fed = {
            name: fn.external_source(
                source=[DRAWN_FEEDS[name].values(drawn).reshape(count, 1)]
            )
            for name in ("contrast", "brightness")
        }
        pipe.set_outputs(_step_of(logit.gpu() if on_gpu else logit, fed))
    pipe.build()
    (steps,) = pipe.run()
    steps_BHWC: npt.NDArray[np.uint16] = steps.as_cpu().as_array()
    return steps_BHWC.reshape(count, -1)
