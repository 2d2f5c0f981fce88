"""The graph of a GPU as DALI records it, without a GPU: operators, types and kernels.

DALI records a graph before it builds it, and only building needs a driver. Which types
an operator takes on a GPU can be read in DALI's libraries: the names of their kernels
hold the types.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from nvidia.dali import types

from ichfast.loading.graph import pipeline_options, slice_graph
from ichfast.windows import Normalization, Window

DType: TypeAlias = types.DALIDataType


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of a recorded graph."""

    name: str
    device: str
    input_types: tuple[DType, ...]
    """Types of its regular inputs, without arguments that are arrays."""

    output_type: DType
    """Type of its first output."""

    options: dict[str, str]
    """Its options as DALI prints them."""


class _Feeds:
    """Names of feeds; the graph is only recorded, so they are never called."""

    def __init__(self, names: Sequence[str]) -> None:
        self.feeds = tuple(names)

    def __call__(self, _info: Any) -> tuple[Any, ...]:
        raise StopIteration


def record_gpu_graph(
    columns: Sequence[str],
    slices: Sequence[str],
    windows: Sequence[Window],
    *,
    uploaded: bool = False,
) -> list[Operator]:
    """Record the graph of a GPU with these feeds.

    Args:
        columns: feeds that are numbers.
        slices: feeds that are slices.
        windows: a window for each channel.
        uploaded: the slices are in the GPU's memory already.
    """
    count = len(windows)
    pipeline = slice_graph(
        _Feeds(columns),
        _Feeds(slices),
        windows=windows,
        normalization=Normalization(mean=(0.3,) * count, std=(0.2,) * count),
        on_gpu=True,
        uploaded=uploaded,
        **pipeline_options(4, on_gpu=False) | {"device_id": 0, "exec_dynamic": True},
    )
    pipeline._build_graph()
    found: dict[str, DType] = {}
    return [_read_operator(each.spec, found) for each in pipeline._ops]


def _read_operator(spec: Any, found: dict[str, DType]) -> Operator:
    """Read an operator, and add the types of its outputs to those found before."""
    spec.InferOutputMetadata()
    title, _, options = str(spec).partition("Arguments:")
    name = title.splitlines()[0].removeprefix("OpSpec for ").rstrip(":")
    options_by_name = dict(re.findall(r"^ +(\w+): (.*)$", options, re.MULTILINE))
    inputs = [found[spec.InputName(k)] for k in range(spec.NumRegularInput())]
    output_type = spec.OutputDesc(0)[3]
    if output_type is None:
        output_type = _output_type(name, inputs, options_by_name)
    found.update({spec.OutputName(k): output_type for k in range(spec.NumOutput())})
    return Operator(
        name=name,
        device=options_by_name["device"],
        input_types=tuple(inputs),
        output_type=output_type,
        options=options_by_name,
    )


def _output_type(name: str, inputs: Sequence[DType], options: dict[str, str]) -> DType:
    """The type of an operator's output where DALI knows it only when it runs."""
    if name == "_ArithmeticGenericOp":
        constants = {
            _ARITHMETIC_TYPES[each]
            for each in re.findall(r"\$\d+:(\w+)", options["expression_desc"])
        }
        assert set(inputs) | constants == {inputs[0]}, "mixed types: add the rule"
    else:
        assert name in KEEPS_TYPE, f"say here which type {name} gives"
    return inputs[0]


_ARITHMETIC_TYPES = {"float32": types.FLOAT, "int32": types.INT32}
"""Types of constants, as arithmetic writes them."""

KEEPS_TYPE = {
    "Cat",
    "Erase",
    "_TensorSubscript",
    "_conditional__Merge",
    "_conditional__Split",
    "experimental__WarpPerspective",
}
"""Operators whose output has the type of their first input."""

WITHOUT_KERNEL = {"Reinterpret", "_conditional__Merge", "_conditional__Split"}
"""Operators that only pass pointers on."""

_CODES = {
    types.FLOAT16: "NS_7float16E",
    types.FLOAT: "f",
    types.INT32: "i",
    types.UINT16: "t",
    types.BOOL: "b",
}
"""Types in the names of functions, as C++ compilers for Linux write them."""

_ARITHMETIC = {"exp": 5, "log": 6, "add": 25, "sub": 26, "mul": 27, "fdiv": 29}
"""Numbers of `ArithmeticOp` in DALI 2.4, `operators/math/expressions`."""


def kernel_name(operator: Operator) -> str:
    """Return a part of the name of the kernel that runs an operator on a GPU."""
    given = [_CODES[each] for each in operator.input_types]
    gives = _CODES[operator.output_type]
    match operator.name:
        case "experimental__WarpPerspective":
            assert operator.input_types == (types.UINT16,)
            # One channel, constant border, linear interpolation.
            return (
                "PerspectiveTransformENS_4cuda25InterpolationVarShapeWrapIK7ushort"
                "1L14NVCVBorderType0EL21NVCVInterpolationType1E"
            )
        case "LookupTable":
            return f"6detail16LookupValuesImplI{gives}{given[0]}E"
        case "Cast":
            return f"BinSearchCastKernelI{gives}{given[0]}E"
        case "BrightnessContrast":
            return f"MultiplyAddKernelI{gives}{given[0]}Li2E"
        case "Cat":
            return f"TensorJoinINS_10GPUBackendELb0EE10SetupTypedI{gives}E"
        case "Erase":  # the last of three axes holds the channels
            return f"erase_gpu_implILi2E{gives}Li3E"
        case "_TensorSubscript":
            assert operator.output_type == types.FLOAT
            return "TensorSubscriptINS_10GPUBackendEE8RunTypedILi1ELi4E"
        case "_ArithmeticGenericOp":
            return _arithmetic_kernel(operator, gives)
    raise AssertionError(f"say here which kernel runs {operator.name}")


def _arithmetic_kernel(operator: Operator, code: str) -> str:
    function, _, operands = operator.options["expression_desc"].partition("(")
    if function == "clamp":
        return f"ExecuteTiledTernaryOp1DILNS0_12ArithmeticOpE48E{code}L"
    number = _ARITHMETIC[function]
    if len(operands.split()) == 1:
        return f"ExecuteTiledUnOpILNS0_12ArithmeticOpE{number}E{code}{code}E"
    # An image and a number of each slice have different shapes.
    kind = "1D" if "$" in operands else "ND"
    return f"ExecuteTiledBinOp{kind}ILNS0_12ArithmeticOpE{number}E{3 * code}"


@contextmanager
def kernel_libraries() -> Iterator[list[mmap.mmap]]:
    """Map the libraries of DALI that hold kernels."""
    spec = find_spec("nvidia.dali")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    paths = [
        folder / "libdali_operators.so",
        folder / "libdali_kernels.so",
        *folder.glob(".libs/libcvcuda*"),
    ]
    mapped = []
    try:
        for path in paths:
            with path.open("rb") as file:
                mapped.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        yield mapped
    finally:
        for each in mapped:
            each.close()
