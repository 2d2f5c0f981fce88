"""Made-up machines."""

from __future__ import annotations

from dataclasses import replace

from ichfast.doctor.machine import Gpu, Machine, StoreSummary

GIB = 2**30

VERSIONS = {
    "ichfast": "0.1.0",
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "nvidia-dali-cuda130": "2.4.0",
    "cupy-cuda13x": "14.2.0",
    "triton": "3.8.0",
}

HOST = {
    "python": "3.12.3",
    "system": "Linux",
    "processor": "AMD EPYC 9654",
    "cores": 16,
    "versions": VERSIONS,
    "commit": None,
}

STORE = StoreSummary(
    slices=752_803,
    labelled=752_803,
    level_bytes={"512": 368 * GIB, "256": 92 * GIB},
    is_packed=False,
    spare_bytes=108 * GIB,
)

PACKED_STORE = replace(
    STORE, is_packed=True, level_bytes={"512": 95 * GIB, "256": 32 * GIB}
)
"""The same slices, packed."""

H200 = Gpu(
    name="NVIDIA H200",
    capability="9.0",
    memory_bytes=140 * GIB,
    spare_bytes=125 * GIB,
)

SERVER = Machine(
    host=HOST,
    outdated=(),
    driver="580.65.06",
    hides_gpus=False,
    cpp_compiler="g++",
    disk_bytes=900 * GIB,
    memory_bytes=128 * GIB,
    available_bytes=120 * GIB,
    store_path="ichfast-store",
    torch_cuda="13.0",
    packed_by="AVX2",
    torch_archs=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "compute_120"),
    gpus=(H200,),
    apex="nvidia",
    nvrtc="13.0",
    store=STORE,
    tested_on="cuda",
    test_seconds=2.5,
)
"""A machine with nothing wrong."""

LAPTOP = Machine(
    host=HOST,
    outdated=(),
    driver=None,
    hides_gpus=False,
    cpp_compiler="g++",
    disk_bytes=50 * GIB,
    memory_bytes=16 * GIB,
    available_bytes=9 * GIB,
    store_path="ichfast-store",
    torch_cuda="13.0",
    packed_by="AVX2",
    torch_archs=SERVER.torch_archs,
    tested_on="cpu",
    test_seconds=4.0,
)
"""A machine without a GPU, and nothing wrong."""


def with_packages(
    *, without: tuple[str, ...] = (), **versions: str
) -> dict[str, object]:
    """`HOST` with other packages; an underscore stands for a hyphen."""
    kept = {name: v for name, v in VERSIONS.items() if name not in without}
    added = {name.replace("_", "-"): v for name, v in versions.items()}
    return {**HOST, "versions": kept | added}
