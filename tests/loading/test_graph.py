"""The graph's inputs are not copied, its errors are one line, its lighting a grid."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from nvidia.dali.tensors import TensorListCPU

from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import draw
from ichfast.augment.reference import LOGIT_EPSILON
from ichfast.loading import prefetch
from ichfast.loading.config import DataConfig
from ichfast.loading.dali import failure_reason, wrap_host_slices
from ichfast.loading.graph import LOGIT_STEPS
from ichfast.loading.loader import make_loader
from ichfast.loading.prefetch import divide
from ichfast.store.store import Store
from tests.loading.contracts import same_images
from tests.loading.lighting_graph import lit_steps


def test_an_array_of_slices_is_wrapped_as_one_object_without_a_copy() -> None:
    stored_BHW = np.zeros((3, 4, 5), np.uint16)
    wrapped = wrap_host_slices(stored_BHW, pinned=False)
    assert isinstance(wrapped, TensorListCPU)
    assert wrapped.layout() == "HWC"
    stored_BHW[2, 3, 1] = 7
    assert wrapped.at(2)[3, 1, 0] == 7


def test_slices_of_several_shapes_are_wrapped_one_by_one_without_a_copy() -> None:
    slices = [np.zeros((4, 5), np.uint16), np.zeros((2, 3), np.uint16)]
    wrapped = wrap_host_slices(slices, pinned=False)
    assert isinstance(wrapped, list)
    slices[1][1, 2] = 7
    assert [tensor.shape() for tensor in wrapped] == [[4, 5, 1], [2, 3, 1]]
    assert np.asarray(wrapped[1])[1, 2, 0] == 7


def test_batches_are_the_same_whether_slices_come_in_one_array_or_in_a_list(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions_N = np.arange(9)
    config = DataConfig(size=32, level=256, batch_size=4, neighbours=1)
    with make_loader(tiny_store, positions_N, config) as loader:
        in_arrays = list(loader)

    def divide_in_list(
        flat: npt.NDArray[np.uint16], shape_B2: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.uint16]]:
        return list(divide(flat, shape_B2))

    monkeypatch.setattr(prefetch, "divide", divide_in_list)
    with make_loader(tiny_store, positions_N, config) as loader:
        in_lists = list(loader)
    assert len(in_arrays) == 3
    for one, other in zip(in_arrays, in_lists, strict=True):
        assert same_images(one, other)


def dali_report(reason: str) -> str:
    """The text of DALI's error when an operator fails."""
    return (
        "Critical error in pipeline:\nCritical error in pipeline:\n"
        "Error in CPU operator `nvidia.dali.fn.slice`,\nwhich was used in the pipeline "
        "definition with the following traceback:\n\n"
        '  File "graph.py", line 10, in graph\n    return fn.slice(stored)\n\n'
        f"encountered:\n\n{reason}\nCurrent pipeline object is no longer valid.\n"
        "Current pipeline object is no longer valid."
    )


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (dali_report("std::bad_alloc"), "std::bad_alloc"),
        (
            dali_report("Slice out of bounds.\nC++ context: [/opt/dali/slice.h:106] "),
            "Slice out of bounds.",
        ),
        (
            dali_report("CUDA error cudaErrorMemoryAllocation (2):\nout of memory"),
            "CUDA error cudaErrorMemoryAllocation (2): out of memory",
        ),
        ("Critical error in pipeline:\nno GPU\nCurrent pipeline object is", "no GPU"),
        (
            "Critical error in pipeline: no GPU\nStacktrace (1 entries):\n[frame 0]: x",
            "no GPU",
        ),
        ("callback returned too much.", "callback returned too much."),
        ("", "RuntimeError"),
    ],
)
def test_the_reason_is_extracted_from_an_error_of_dali(
    report: str, reason: str
) -> None:
    assert failure_reason(RuntimeError(report)) == reason


LAST_STEP = 65_535
MIDDLE = 32_768
"""The step of logit 0."""

HIGHEST = float(np.log((1.0 - LOGIT_EPSILON) / LOGIT_EPSILON))
LOGIT_V = np.linspace(-HIGHEST, HIGHEST, 9_973, dtype=np.float32)
"""The whole range of logits."""

SINGLE = 1 / 128
"""Rounding error of float32 in products of up to 2**16 steps, in steps."""

SINGLE_AT_THE_LIMIT = 1 / 8
"""Rounding error of float32 in two products of up to 2**21 steps, in steps."""


def places(
    contrast_B: npt.NDArray[np.float32], brightness_B: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """The reference's logits as steps of the grid, not rounded, shape (B, V)."""
    brighter_BV = LOGIT_V + brightness_B[:, np.newaxis].astype(float)
    return brighter_BV * contrast_B[:, np.newaxis].astype(float) * LOGIT_STEPS + MIDDLE


def lighting_at_the_limit() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """All pairs of the smallest and largest contrast and brightness."""
    drawn = draw(
        AugmentConfig(max_lighting=np.nextafter(0.99, 0), lighting_probability=1.0),
        seed=0,
        epoch=0,
        slices_B=np.arange(10_000),
        source_shape_B2=np.full((10_000, 2), 64.0),
        size=64,
    )
    contrasts = [drawn.contrast_B.min(), drawn.contrast_B.max()]
    assert contrasts[1] > 99
    brightnesses = [drawn.brightness_B.min(), drawn.brightness_B.max()]
    return np.repeat(contrasts, 2), np.tile(brightnesses, 2)


def test_contrast_alone_gives_the_step_nearest_to_the_references_logit() -> None:
    contrast_B = np.array([0.8, 0.9371, 1.0, 1.2499], np.float32)
    zero_B = np.zeros_like(contrast_B)
    place_BV = places(contrast_B, zero_B).clip(0, LAST_STEP)
    step_BV = lit_steps(LOGIT_V, contrast_B, zero_B)
    assert abs(step_BV - place_BV).max() <= 0.5 + SINGLE


def test_brightness_adds_an_error_of_half_a_step_or_less() -> None:
    brightness_B = np.linspace(-0.41, 0.41, 31, dtype=np.float32)
    contrast_B = np.linspace(1.25, 0.8, 31, dtype=np.float32)
    place_BV = places(contrast_B, brightness_B).clip(0, LAST_STEP)
    step_BV = lit_steps(LOGIT_V, contrast_B, brightness_B)
    assert abs(step_BV - place_BV).max() <= 1.0 + SINGLE


def test_values_lit_beyond_the_grid_saturate_at_its_ends() -> None:
    contrast_B, brightness_B = lighting_at_the_limit()
    place_BV = places(contrast_B, brightness_B)
    assert place_BV.min() < -3_000_000
    assert place_BV.max() > 3_000_000
    step_BV = lit_steps(LOGIT_V, contrast_B, brightness_B)
    error_BV = abs(step_BV - place_BV.clip(0, LAST_STEP))
    assert error_BV.max() <= 1.0 + SINGLE_AT_THE_LIMIT
