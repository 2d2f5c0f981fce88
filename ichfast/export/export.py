"""Export of a run as one file, .pt2 or .onnx, that runs without ichfast.

1. The file takes HU and returns probabilities, both float32 (`ichfast.export.module`).
2. The probabilities of a calibrated run are calibrated. Its thresholds are in the file
   too: in a .pt2 file as the extra file ``calibration.json``, in an .onnx file as the
   entry ``calibration`` of its metadata.
3. A model card is written next to it (`ichfast.export.card`).
4. Neither names a file or folder of the machine that wrote it.
5. Both are written, or none.
"""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize

from ichfast.errors import ModelError
from ichfast.export.card import card_path, format_card
from ichfast.export.module import COLUMNS, ROWS, CalibratedModel, HuToProbs
from ichfast.labels import CLASSES
from ichfast.loading.config import OWN, DataConfig, parse_windows
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.store.levels import SMALL_LEVEL, SOURCE_LEVEL
from ichfast.system.files import flush, output_path

SUFFIXES = (".pt2", ".onnx")
CALIBRATION_FILE, CALIBRATION_ENTRY = "calibration.json", "calibration"
"""Where the calibration is in a .pt2 file, and in an .onnx file."""

ONNX_PACKAGES = ("onnx", "onnxscript")
"""Packages that torch writes .onnx files with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What `export_run` wrote."""

    model: str
    card: str
    input_shape: tuple[str | int, ...]
    classes: tuple[str, ...]
    """Classes of the six probabilities, in order."""


def export_run(path: Path, out: Path) -> ExportReport:
    """Export the best epoch of a run, and write its model card.

    Args:
        path: the folder of the run.
        out: the model; ends in one of `SUFFIXES`. Replaced if it exists.

    Raises:
        IchfastError: no run, or no valid checkpoint.
        ModelError: another suffix, a missing package, a run whose windows differ by
            slice, or a file that cannot be written.
    """
    _check_form(out)
    run = open_run(path)
    card = format_card(run, out)
    with output_path(out, ModelError) as temporary:
        program = trace(run)
        to_bytes = _onnx if out.suffix == ".onnx" else _pt2
        temporary.write_bytes(to_bytes(program, _calibration_text(run)))
        flush(temporary)  # the last point at which a full disk is noticed
        with output_path(card_path(out), ModelError) as beside:
            beside.write_text(card, encoding="utf-8")
    return ExportReport(
        model=str(out),
        card=str(card_path(out)),
        input_shape=("slices", *_input_shape(run.record.recipe.data)),
        classes=CLASSES,
    )


def trace(run: TrainedRun) -> ExportedProgram:
    """Trace the module of a run, for any number of slices.

    Raises:
        ModelError: the windows of the run differ by slice.
        CheckpointError: a damaged checkpoint.
    """
    return trace_module(hu_module(run), _input_shape(run.record.recipe.data))


def trace_module(module: HuToProbs, shape: tuple[int, ...]) -> ExportedProgram:
    """Trace a module, for any number of slices.

    Args:
        module: in evaluation mode, on the CPU.
        shape: of the HU of one slice, or of its slab.
    """
    hu = torch.full((2, *shape), -1000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own code
        program = torch.export.export(
            module, (hu,), dynamic_shapes=({0: Dim("slices")},)
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files
    return program


def hu_module(run: TrainedRun) -> HuToProbs:
    """Build the module from HU to the probabilities of a run, on the CPU.

    Raises:
        ModelError: the windows of the run differ by slice.
        CheckpointError: a damaged checkpoint.
    """
    data = run.record.recipe.data
    if OWN in data.windows:
        raise ModelError(
            f"{run.path} uses each slice's own window, which an exported model does "
            "not get; export a run with fixed windows, such as brain"
        )
    model = run.load_model(torch.device("cpu"))
    # torch.export packages plain tensors only.
    model = model.to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    if run.record.calibration:
        model = CalibratedModel(model, run.record.calibration)
    return HuToProbs(
        model,
        size=data.size,
        level=_level(data),
        windows=parse_windows(data.windows),
        normalization=run.record.normalization,
        slab_depth=data.slab_depth,
    ).eval()


def _level(data: DataConfig) -> int:
    """The level that the run reads from a store with both levels."""
    if data.level == "auto":
        return SMALL_LEVEL if data.size <= SMALL_LEVEL else SOURCE_LEVEL
    return int(data.level)


def _input_shape(data: DataConfig) -> tuple[int, ...]:
    depth = (data.slab_depth,) if data.neighbours else ()
    return (*depth, ROWS, COLUMNS)


def _check_form(out: Path) -> None:
    if out.suffix not in SUFFIXES:
        raise ModelError(f"a model is a {' or '.join(SUFFIXES)} file, got {out.name!r}")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise ModelError(
            f"writing .onnx needs {' and '.join(missing)}, not installed here; run "
            "`pip install 'ichfast[export]'`, or write a .pt2 file"
        )


def _calibration_text(run: TrainedRun) -> str:
    """Temperatures, biases and thresholds as JSON; empty if a run is not calibrated."""
    calibration = run.record.calibration
    if calibration is None:
        return ""
    classes = {
        each.name: {
            "temperature": each.temperature,
            "bias": each.bias,
            "threshold": each.threshold and each.threshold.probability,
        }
        for each in calibration.classes
    }
    return json.dumps({"aim": asdict(calibration.aim), "classes": classes})


def _pt2(program: ExportedProgram, calibration: str) -> bytes:
    extra_files: dict[str, Any] = {}
    if calibration:
        extra_files[CALIBRATION_FILE] = calibration
    # Torch's writer ends the process if it cannot write to a file.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=extra_files)
    return buffer.getvalue()


def _onnx(program: ExportedProgram, calibration: str) -> bytes:
    written = torch.onnx.export(
        program,
        input_names=["hu"],
        output_names=["probs"],
        dynamo=True,
        verbose=False,  # the messages would go to stdout
    )
    assert written is not None, "torch.onnx.export returns a program if it gets no file"
    proto = written.model_proto
    if calibration:
        proto.metadata_props.add(key=CALIBRATION_ENTRY, value=calibration)
    content: bytes = proto.SerializeToString()
    return content
