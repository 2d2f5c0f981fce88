"""The child process of `ichfast.doctor.machine`: loads CUDA, and reports by stage.

    python -m ichfast.doctor.probe STORE

Its stdout is a line of JSON per stage: what was found, and the error, if any.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ichfast.doctor.machine import STAGES
from ichfast.errors import first_line

Facts = dict[str, Any]
"""Fields of `ichfast.doctor.machine.Machine`."""


def _decoders(_store: Path) -> Facts:
    from ichfast.dicom.slices import missing_decoders
    from ichfast.packed.codec import packed_by

    return {"missing_decoders": missing_decoders(), "packed_by": packed_by()}


def _torch(_store: Path) -> Facts:
    import torch

    from ichfast.loading.cache import RESERVED_SHARE

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = []
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        free_bytes, memory_bytes = torch.cuda.mem_get_info(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": memory_bytes,
                "spare_bytes": int((1 - RESERVED_SHARE) * free_bytes),
            }
        )
    return {
        "torch_cuda": torch.version.cuda,
        "torch_archs": torch.cuda.get_arch_list(),
        "gpus": gpus,
        "gpu_warning": str(caught[0].message).partition(". ")[0] if caught else None,
        "apex": _apex(),
    }


def _apex() -> str:
    from ichfast.training.optimizers import nvidia_apex

    if nvidia_apex() is not None:
        return "nvidia"
    if importlib.util.find_spec("amp_C") is not None:
        return "broken"
    return "other" if importlib.util.find_spec("apex") is not None else "none"


def _dali(_store: Path) -> Facts:
    import torch

    from ichfast.errors import DeviceError
    from ichfast.loading.dali import gpu_problem

    if torch.cuda.is_available() and (problem := gpu_problem()):
        raise DeviceError(problem)
    return {}


def _cupy(_store: Path) -> Facts:
    import torch
    from cupy.cuda import nvrtc

    from ichfast.loading.gather import compile_kernels

    if torch.cuda.is_available():
        compile_kernels(torch.cuda.current_device())
    return {"nvrtc": ".".join(map(str, nvrtc.getVersion()))}


def _store(store: Path) -> Facts:
    from ichfast.loading.cache import RESERVED_SHARE
    from ichfast.store.header import read_header
    from ichfast.system.memory import available_memory
    from ichfast.training.checkpoint import BEST

    models = sorted(
        Path("runs").glob(f"*/{BEST}"), key=lambda each: each.stat().st_mtime
    )
    run = str(models[-1].parent) if models else None
    if not store.exists():
        return {"run": run}
    header = read_header(store)
    of_slices = header.counts["labelled"] + header.counts["partly_labelled"]
    summary = {
        "slices": header.counts["slices"],
        "labelled": of_slices or max(header.known.values(), default=0),
        "level_bytes": {
            str(level): sum(shard.num_bytes(level) for shard in header.shards)
            for level in header.levels
        },
        "is_packed": header.is_packed,
        "spare_bytes": int((1 - RESERVED_SHARE) * available_memory()),
    }
    return {"run": run, "store": summary}


def _self_test(_store: Path) -> Facts:
    from ichfast.doctor.selftest import run_self_test
    from ichfast.runs.device import choose_device

    device = choose_device("auto").type
    start = time.perf_counter()
    run_self_test(device)
    return {"tested_on": device, "test_seconds": time.perf_counter() - start}


_EXAMINATIONS: dict[str, Callable[[Path], Facts]] = {
    "decoders": _decoders,
    "torch": _torch,
    "DALI": _dali,
    "CuPy": _cupy,
    "store": _store,
    "self-test": _self_test,
}
"""By stage."""

_FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/:]+/)+")
"""The folders of an absolute path; they may hold the name of a user."""


def main(store: Path) -> None:
    """Examine this machine, and write a line per stage to stdout.

    Args:
        store: a store's folder, which need not exist.
    """
    # What libraries print, and processes that the self-test starts, go to stderr.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for stage in STAGES:
            facts, error = {}, ""
            try:
                facts = _EXAMINATIONS[stage](store)
            except Exception as found:  # noqa: BLE001 - any failure of any library
                error = _FOLDERS.sub("", first_line(found))
            out.write(json.dumps([facts, error]) + "\n")
            out.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
