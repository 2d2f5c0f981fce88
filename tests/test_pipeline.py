"""What DALI is handed is one object where it can be, and never a copy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from nvidia.dali.tensors import TensorListCPU

from ichfast import reading
from ichfast.dataconfig import DataConfig
from ichfast.loader import make_loader
from ichfast.pipeline import failure_reason, wrap_host_slices
from ichfast.reading import divide
from ichfast.store import Store
from tests.contracts import same_images


def test_an_array_of_slices_is_one_object_and_not_copied() -> None:
    stored_BHW = np.zeros((3, 4, 5), np.uint16)
    wrapped = wrap_host_slices(stored_BHW, pinned=False)
    assert isinstance(wrapped, TensorListCPU)
    assert wrapped.layout() == "HWC"
    stored_BHW[2, 3, 1] = 7
    assert wrapped.at(2)[3, 1, 0] == 7


def test_slices_of_several_shapes_are_an_object_each_and_not_copied() -> None:
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
    config = DataConfig(size=32, level=256, batch_size=4, neighbours=True)
    with make_loader(tiny_store, positions_N, config) as loader:
        in_arrays = list(loader)

    def divide_in_list(
        flat: npt.NDArray[np.uint16], shape_B2: npt.NDArray[np.int64]
    ) -> list[npt.NDArray[np.uint16]]:
        return list(divide(flat, shape_B2))

    monkeypatch.setattr(reading, "divide", divide_in_list)
    with make_loader(tiny_store, positions_N, config) as loader:
        in_lists = list(loader)
    assert len(in_arrays) == 3
    for one, other in zip(in_arrays, in_lists, strict=True):
        assert same_images(one, other)


def dali_report(reason: str) -> str:
    """What DALI says when an operator fails."""
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
def test_of_what_dali_says_the_reason_is_shown(report: str, reason: str) -> None:
    assert failure_reason(RuntimeError(report)) == reason
