"""Data flows one way: a module may import only from layers below its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ichfast

LAYERS = (
    {"errors", "elements", "checksums", "halving", "hugepages", "readers", "zips"}
    | {"expansion", "printable", "torchfile"},
    {"parquetfile"},
    {"windows", "batch", "files", "progress", "environment", "amp", "settings"}
    | {"levels", "gather", "logit", "options", "memory", "dalifailure", "handover"},
    {"labels", "sampler", "augment", "geometry", "losses", "mixup", "signals"}
    | {"published", "shards", "pseudonyms", "remote", "schedules", "ema"}
    | {"ranger", "lamb", "fastai_keys", "pretrained", "phases", "ranks"}
    | {"relaunch", "waiting", "compiler", "history", "profiler", "smoothing"}
    | {"bootstrap", "gradcam", "operating", "lock", "headers", "mistrust"},
    {"predictions", "folds", "quirks", "common", "filebytes", "archives", "canvas"}
    | {"codestreams"}
    | {"writer", "manifest", "xresnet", "draws", "sharing"}
    | {"shelf"},
    {"sorting"},
    {"metrics", "hounsfield", "anatomy", "hemorrhage", "scanner", "weights"}
    | {"listing", "sequences"}
    | {"slicetable", "series", "summary", "damage", "twin"}
    | {"curves", "cases", "figures", "heatmaps"},
    {"dicom", "sources", "store", "phantom", "models", "optim", "checkpoint"}
    | {"evaluation"},
    {"plan", "intake", "synth", "shading", "pipeline", "predict", "channels", "submit"}
    | {"pictures", "reading", "sampling", "stepper", "runlog", "scoretable"}
    | {"batchsize", "alongseries", "trainingcharts"},
    {"dataconfig", "resident", "judgingcharts", "judged", "casecards"},
    {"supply"},
    {"feeds", "reportcharts"},
    {"journal", "loader", "validation", "report", "device", "overview"},
    {"train", "allrows"},
    {"repeats", "sharedtexts"},
    {"labelling"},
    {"convert", "merge", "recipe", "normalization", "hugraph"},
    {"experiments"},
    {"recipes"},
    {"lanes", "splits", "preview", "appending", "catalogue"},
    {"besides"},
    {"cluster"},
    {"workers"},
    {"prepare", "runrecord"},
    {"runfolder"},
    {"runs"},
    {"trained", "repair", "comparison", "crossvalidation"},
    {"activations", "leaks", "modelcard", "comparisonchart"},
    {"ensemble", "export", "results"},
    {"fromdicom", "demo"},
    {"storing", "training", "judging"},
    {"cli"},
    {"__main__"},
)
"""Lowest first. A module may import from the sets before its own."""

LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}


def imported_modules(path: Path) -> Iterator[str]:
    """Yield every `ichfast.<module>` that the file at `path` imports, anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module="ichfast", names=names):
                for name in names:
                    yield name.name
            case ast.ImportFrom(module=str(module)) if module.startswith("ichfast."):
                yield module.split(".")[1]
            case ast.Import(names=names):
                for name in names:
                    if name.name.startswith("ichfast."):
                        yield name.name.split(".")[1]


def test_imports_point_down() -> None:
    package = Path(ichfast.__path__[0])
    upward = [
        f"{path.name} imports {imported}"
        for path in sorted(package.glob("*.py"))
        if path.stem != "__init__"
        for imported in imported_modules(path)
        if imported != "__version__" and LAYER_OF[imported] >= LAYER_OF[path.stem]
    ]
    assert upward == []
