"""The inputs of the model of many GPUs, each with its source.

Measured inputs come from results files. The others are given on the command line, or
assumed and marked as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.harness.measure import BenchError, Record
from bench.harness.records import hardware_of
from bench.scaling.fleet import Node, Storage
from ichfast.loading.graph import MAX_THREADS

MB = 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One number, its unit and its source."""

    name: str
    value: float
    unit: str
    source: str
    """Begins with ``measured``, ``given`` or ``assumed``."""


ASSUMED = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            name="disk",
            value=6000.0,
            unit="MB/s a machine",
            source="assumed: one NVMe drive behind PCIe 4.0 x4, which carries 7,877 "
            "(PCI-SIG: 16 GT/s, 4 lanes, 128b/130b)",
        ),
        Quantity(
            name="link",
            value=12_500.0,
            unit="MB/s a machine",
            source="assumed: 100 Gb/s Ethernet, filled",
        ),
        Quantity(
            name="server",
            value=12_500.0,
            unit="MB/s for all",
            source="assumed: one NFS server behind 100 Gb/s Ethernet, filled",
        ),
        Quantity(
            name="requests",
            value=5500.0,
            unit="slices/s for all",
            source="assumed: one GET a slice, one prefix (Amazon S3 User Guide, "
            "'Optimizing performance': at least 5,500 GET/s a partitioned prefix)",
        ),
        Quantity(
            name="upload",
            value=25_000.0,
            unit="MB/s a GPU",
            source="assumed: PCIe 4.0 x16, which carries 31,508 "
            "(PCI-SIG: 16 GT/s, 16 lanes, 128b/130b)",
        ),
        Quantity(
            name="cores",
            value=14.0,
            unit="cores a GPU",
            source="assumed: 112 cores and 8 GPUs a machine",
        ),
        Quantity(
            name="gpus",
            value=8.0,
            unit="GPUs a machine",
            source="assumed: 112 cores and 8 GPUs a machine",
        ),
    )
}
"""Inputs that are used where nothing was measured or given."""

PACKED = ("packed size", "packed loader")
"""Inputs of a packed store, each in per cent of that of a raw store."""


def find_quantities(
    records: Sequence[Record], *, level: int, size: int, given: dict[str, float | None]
) -> dict[str, Quantity]:
    """Collect all inputs of the model, by name.

    Args:
        records: Newest last.
        level: Level of the store that is read.
        size: Side of the network's input, pixels.
        given: Values from the command line by name, or None.

    Raises:
        BenchError: The loader's rate was neither measured nor given.
    """
    found = dict(ASSUMED)
    disk = _measured_disk(records)
    if disk is not None:
        found["disk"] = disk
    loader = _measured_loader(records, level, size)
    if loader is not None:
        found["loader"] = loader
    for packed in _measured_packed(records, level, size):
        found[packed.name] = packed
    for name, value in given.items():
        if value is not None:
            unit = found[name].unit if name in found else "slices/s a core"
            found[name] = Quantity(name=name, value=value, unit=unit, source="given")
    if "loader" not in found:
        raise BenchError(
            f"no results hold the loader's rate from level {level} to {size}; measure "
            "it with `python bench/throughput.py loader`, or give it with --loader"
        )
    return found


def storages(quantities: dict[str, Quantity]) -> list[Storage]:
    """Make the three kinds of storage."""
    value = {name: quantity.value for name, quantity in quantities.items()}
    return [
        Storage(name="local NVMe", node_bytes_per_s=value["disk"] * MB),
        Storage(
            name="NFS",
            node_bytes_per_s=value["link"] * MB,
            shared_bytes_per_s=value["server"] * MB,
        ),
        Storage(
            name="object store",
            node_bytes_per_s=value["link"] * MB,
            shared_slices_per_s=value["requests"],
        ),
    ]


def make_node(
    quantities: dict[str, Quantity],
    *,
    slice_bytes: int,
    gpu_per_s: float | None,
    is_packed: bool = False,
) -> Node:
    """Make the machine of the model.

    Args:
        quantities: Of `find_quantities`.
        slice_bytes: Bytes of a slice's pixels.
        gpu_per_s: Slices per second that one GPU trains; None if unknown.
        is_packed: Whether the store is packed. If so, `quantities` has `PACKED`.
    """
    value = {name: quantity.value for name, quantity in quantities.items()}
    share, loader_share = (value[name] / 100 if is_packed else 1.0 for name in PACKED)
    return Node(
        gpus=math.floor(value["gpus"]),
        slice_bytes=slice_bytes,
        stored_bytes=slice_bytes * share,
        loader_per_gpu=value["loader"] * value["cores"] * loader_share,
        upload_bytes_per_s=value["upload"] * MB,
        gpu_per_s=gpu_per_s,
    )


def find_record(
    records: Sequence[Record], stage: str, case: str, name: str
) -> Record | None:
    """Find the last measured record of a thing, or None.

    Args:
        records: Newest last.
        stage: One of `bench.stages.STAGES`.
        case: What is compared within the stage.
        name: What has the rate.
    """
    key = (stage, case, name)
    found = [record for record in records if record.key == key and record.estimate]
    return found[-1] if found else None


def loader_record(records: Sequence[Record], level: int, size: int) -> Record | None:
    """Find the last record of the loader on a CPU, or None.

    Args:
        records: Newest last.
        level: Level of the store that is read.
        size: Side of the network's input, pixels.
    """
    on_cpu = [record for record in records if record.device == "cpu"]
    return find_record(on_cpu, "loader", f"level {level} to {size}", "ichfast")


def packed_record(records: Sequence[Record], level: int) -> Record | None:
    """Find the last record of the size of a packed level, or None.

    Args:
        records: Newest last.
        level: Level of the store.
    """
    return find_record(records, "packed", f"level {level}, bytes", "packed")


def per_core(record: Record) -> float:
    """Divide a loader's rate by the cores that it uses, slices per second."""
    assert record.estimate is not None
    cores = min(MAX_THREADS, record.environment["cores"])
    return float(record.estimate.median / cores)


def _measured_loader(
    records: Sequence[Record], level: int, size: int
) -> Quantity | None:
    record = loader_record(records, level, size)
    if record is None:
        return None
    return Quantity(
        name="loader",
        value=per_core(record),
        unit="slices/s a core",
        source=f"measured: {_origin(record)}; the whole graph on the CPU",
    )


def _measured_packed(
    records: Sequence[Record], level: int, size: int
) -> list[Quantity]:
    """The quantities `PACKED`, if both were measured."""
    on_cpu = [record for record in records if record.device == "cpu"]
    case = f"loader, level {level} to {size}, page cache"
    shares, loader = (
        packed_record(on_cpu, level),
        find_record(on_cpu, "packed", case, "raw store"),
    )
    if shares is None or shares.estimate is None or not loader or not loader.ratio:
        return []
    return [
        Quantity(
            name=name,
            value=value,
            unit="% of a raw store's",
            source=f"measured: {_origin(record)}",
        )
        for name, value, record in zip(
            PACKED,
            (shares.estimate.median, 100 * loader.ratio.median),
            (shares, loader),
            strict=True,
        )
    ]


def _measured_disk(records: Sequence[Record]) -> Quantity | None:
    record = find_record(records, "read", "cold", "sequential read")
    if record is None or record.estimate is None:
        return None
    return Quantity(
        name="disk",
        value=record.estimate.median * record.settings["unit_bytes"] / MB,
        unit="MB/s a machine",
        source=f"measured: {_origin(record)}; cold, in sequence",
    )


def _origin(record: Record) -> str:
    return f"{hardware_of(record)}; {record.commit}, {record.date[:10]}"
