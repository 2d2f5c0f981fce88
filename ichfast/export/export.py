"""Export of a run as one file, .pt2 or .onnx, that runs without ichfast.

1. The file takes HU and returns probabilities, both float32 (`ichfast.export.module`).
   That of a series run takes the slices of one series, and returns the probabilities of
   its slices and of the series (`ichfast.export.series_module`).
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import parametrize

from ichfast.errors import ModelError
from ichfast.evaluation.calibration import Calibration
from ichfast.export.card import card_path, format_card
from ichfast.export.module import COLUMNS, ROWS, CalibratedModel, HuToProbs
from ichfast.export.series_card import format_series_card
from ichfast.export.series_module import SeriesToProbs
from ichfast.labels import CLASSES
from ichfast.loading.config import OWN, DataConfig, parse_windows
from ichfast.runs.trained import TrainedRun, open_run
from ichfast.series.folder import SeriesRun, is_series_run, open_series_run
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
    """Export the best epoch of a run, or a series run, and write its model card.

    Args:
        path: the folder of the run.
        out: the model; ends in one of `SUFFIXES`. Replaced if it exists.

    Raises:
        IchfastError: no run, or no valid checkpoint.
        ModelError: another suffix, a missing package, a run whose windows differ by
            slice, a series run that reads positions in mm, or a file that cannot be
            written.
    """
    _check_form(out)
    if is_series_run(path):
        series_run = open_series_run(path)
        return _export(
            out,
            format_series_card(series_run, out),
            series_run.record.calibration,
            ("slices", ROWS, COLUMNS),
            lambda: trace_series(series_run),
        )
    run = open_run(path)
    return _export(
        out,
        format_card(run, out),
        run.record.calibration,
        ("slices", *_input_shape(run.record.recipe.data)),
        lambda: trace(run),
    )


def _export(
    out: Path,
    card: str,
    calibration: Calibration | None,
    shape: tuple[str | int, ...],
    make_program: Callable[[], ExportedProgram],
) -> ExportReport:
    with output_path(out, ModelError) as temporary:
        program = make_program()
        to_bytes = _onnx if out.suffix == ".onnx" else _pt2
        temporary.write_bytes(to_bytes(program, _calibration_text(calibration)))
        flush(temporary)  # the last point at which a full disk is noticed
        with output_path(card_path(out), ModelError) as beside:
            beside.write_text(card, encoding="utf-8")
    return ExportReport(
        model=str(out), card=str(card_path(out)), input_shape=shape, classes=CLASSES
    )


def trace(run: TrainedRun) -> ExportedProgram:
    """Trace the module of a run, for any number of slices.

    Raises:
        ModelError: the windows of the run differ by slice.
        CheckpointError: a damaged checkpoint.
    """
    hu = torch.full((2, *_input_shape(run.record.recipe.data)), -1000.0)
    return trace_module(hu_module(run), hu)


def trace_series(run: SeriesRun) -> ExportedProgram:
    """Trace the module of a series run, for a series of any number of slices.

    Raises:
        ModelError: the windows of the run differ by slice, or it reads positions in mm.
        CheckpointError: a damaged checkpoint.
    """
    return trace_module(series_module(run), torch.full((3, ROWS, COLUMNS), -1000.0))


def trace_module(module: nn.Module, hu: Tensor) -> ExportedProgram:
    """Trace a module, for any number of slices.

    Args:
        module: in evaluation mode, on the CPU.
        hu: of some slices; float32.
    """
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
    module = _plain_module(run)
    if run.record.calibration:
        module.model = CalibratedModel(module.model, run.record.calibration)
    return module.eval()


def series_module(run: SeriesRun) -> SeriesToProbs:
    """Build the module from the HU of a series to its probabilities, on the CPU.

    Raises:
        ModelError: the windows of the run differ by slice, or it reads positions in mm.
        CheckpointError: a damaged checkpoint.
    """
    if run.record.series.position != "ordinal":
        raise ModelError(
            f"{run.path} reads slice positions in mm, which an exported model does not "
            "get; export a run with series.position=ordinal"
        )
    return SeriesToProbs(
        [_plain_module(backbone) for backbone in run.backbones],
        run.load_head(torch.device("cpu")),
        shares=run.record.blend,
        calibration=run.record.calibration,
    ).eval()


def _plain_module(run: TrainedRun) -> HuToProbs:
    """`hu_module` without calibration."""
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
    return HuToProbs(
        model,
        size=data.size,
        level=_level(data),
        windows=parse_windows(data.windows),
        normalization=run.record.normalization,
        slab_depth=data.slab_depth,
    )


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


def _calibration_text(calibration: Calibration | None) -> str:
    """Temperatures, biases and thresholds as JSON; empty if a run is not calibrated."""
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
        output_names=["probs", "series_probs"][
            : len(program.graph_signature.user_outputs)
        ],
        dynamo=True,
        verbose=False,  # the messages would go to stdout
    )
    assert written is not None, "torch.onnx.export returns a program if it gets no file"
    proto = written.model_proto
    if calibration:
        proto.metadata_props.add(key=CALIBRATION_ENTRY, value=calibration)
    content: bytes = proto.SerializeToString()
    return content
