"""The bottleneck with 1 to 1,024 GPUs: a model, checked where it can be.

    python bench/scale.py [--level 256] [--size 224] [--gpu resnext50=RATE]

It takes measured rates from results files, and marks each other figure as given or
assumed. The rate of a GPU is never assumed: without ``--gpu`` the table shows the rates
of the other parts. A packed store is shown beside the raw one once it was measured.
Tables go to stdout, and one JSON line after them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import click
from matplotlib.figure import Figure

from bench.harness.measure import Record
from bench.harness.records import RESULTS_DIR, hardware_of, read_newest, read_records
from bench.harness.table import align, format_number
from bench.harness.workload import default_cache_dir
from bench.scaling.capacity import NUM_SLICES, SIZES_GB, Encoding, encodings
from bench.scaling.fleet import Node, Storage, bottleneck, part_rates
from bench.scaling.quantities import (
    ASSUMED,
    MB,
    PACKED,
    Quantity,
    find_quantities,
    loader_record,
    make_node,
    per_core,
    storages,
)
from ichfast.errors import IchfastError
from ichfast.report.charts.style import LIGHT, MODEL_COLOR, SECOND_COLOR
from ichfast.system.files import atomic_path

NUM_GPUS = tuple(2**k for k in range(11))
SLICE_BYTES = {512: 512 * 512 * 2, 256: 256 * 256 * 2}
LINE_STYLES = ("-", "--", ":")
DPI = 160


def predict(
    kinds: Sequence[Storage], node: Node, num_gpus: Sequence[int] = NUM_GPUS
) -> dict[str, list[tuple[int, str, float]]]:
    """Predict GPUs, bottleneck and slices per second of the job for each storage.

    Args:
        kinds: The kinds of storage.
        node: The machines.
        num_gpus: Numbers of GPUs to predict for.
    """
    return {
        storage.name: [
            (count, *bottleneck(part_rates(storage, node, count))) for count in num_gpus
        ]
        for storage in kinds
    }


def check_ranks(records: Sequence[Record], *, level: int, size: int) -> list[str]:
    """Compare the predicted rates of 1, 2 and more ranks with the measured ones.

    Ranks that share cores are predicted to be as fast as the cores are.

    Args:
        records: Newest last.
        level: Level of the store that is read.
        size: Side of the network's input, pixels.

    Returns:
        A line of text for each number of ranks.
    """
    loader = loader_record(records, level, size)
    measured_ranks = {
        record.settings["ranks"]: record
        for record in records
        if record.stage == "scale"
        and record.estimate
        and "ranks" in record.settings
        and not record.name.startswith("all of")
        and (record.settings["level"], record.settings["size"]) == (level, size)
        and loader is not None
        and hardware_of(record) == hardware_of(loader)
    }
    lines = []
    for ranks in sorted({1, 2, *measured_ranks}):
        found = measured_ranks.get(ranks)
        if loader is None or found is None or found.estimate is None:
            lines.append(
                f"{ranks} rank(s): not measured; `python bench/throughput.py loader "
                "scale` does"
            )
            continue
        measured = ranks * found.estimate.median
        cores = min(ranks * found.settings["cores"], found.environment["cores"])
        predicted = cores * per_core(loader)
        lines.append(
            f"{ranks} rank(s): predicted {format_number(predicted)} slices/s, measured "
            f"{format_number(measured)}: {predicted / measured - 1:+.0%}"
        )
    return lines


def draw(predicted: dict[str, dict[str, list[tuple[int, str, float]]]]) -> Figure:
    """Draw slices per second over GPUs: networks by colour, storages by line style."""
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    ax = figure.subplots()
    colors = (MODEL_COLOR, SECOND_COLOR, LIGHT.ink, LIGHT.faint)
    for number, (network, kinds) in enumerate(predicted.items()):
        for style, (storage, rows) in zip(LINE_STYLES, kinds.items(), strict=True):
            ax.plot(
                [row[0] for row in rows],
                [row[2] for row in rows],
                style,
                color=colors[number % len(colors)],
                label=f"{storage}, {network}",
            )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(NUM_GPUS, [f"{count:,}" for count in NUM_GPUS])
    ax.set_xlabel("GPUs")
    ax.set_ylabel("slices/s of the whole job")
    ax.set_title("A model, not a measurement: see its assumptions", fontsize=9)
    ax.grid(color=LIGHT.faint, alpha=0.4)
    ax.legend(fontsize=8)
    return figure


def format_quantities(quantities: dict[str, Quantity]) -> str:
    """Format the inputs of the model, with the source of each."""
    return align(
        ("input", "value", "unit", "source"),
        [
            (each.name, format_number(each.value), each.unit, each.source)
            for each in quantities.values()
        ],
        right=(1,),
    )


def format_prediction(
    predicted: dict[str, dict[str, list[tuple[int, str, float]]]],
) -> str:
    """Format rate and bottleneck for each network and number of GPUs."""
    return align(
        ("network", "GPUs", *next(iter(predicted.values()))),
        [
            (
                network if row == 0 else "",
                f"{count:,}",
                *(
                    f"{format_number(rows[row][2])} {rows[row][1]}"
                    for rows in kinds.values()
                ),
            )
            for network, kinds in predicted.items()
            for row, count in enumerate(NUM_GPUS)
        ],
        right=(1,),
    )


def format_capacity(
    found: Sequence[Encoding], gpu_rates: Mapping[str, float | None]
) -> str:
    """Format what holds all slices, and the disk that feeds a GPU, for each encoding.

    Args:
        found: Each level, raw and packed.
        gpu_rates: What one GPU trains, slices per second, by network; 1,000 if unknown.
    """
    rates = {
        name if rate else "1,000 slices/s": rate or 1000.0
        for name, rate in gpu_rates.items()
    }
    rows = []
    for each in found:
        cells = ["not measured"] * (1 + len(SIZES_GB) + len(rates))
        if each.slice_bytes is not None and each.total_gb is not None:
            feeding = (rate * each.slice_bytes / MB for rate in rates.values())
            cells = [
                f"{each.total_gb:.1f} GB",
                *map(each.holder, SIZES_GB),
                *(f"{format_number(rate)} MB/s" for rate in feeding),
            ]
        rows.append((str(each.level), each.name, *cells))
    header = ("level", "", "all slices", *SIZES_GB, *(f"disk for {n}" for n in rates))
    return align(header, rows, right=range(2, len(header)))


def parse_gpu_rates(texts: Sequence[str]) -> dict[str, float | None]:
    """Read ``NETWORK=RATE`` texts; without any, give one network of unknown rate.

    Raises:
        IchfastError: A text has another form, or a rate is not above zero.
    """
    rates: dict[str, float | None] = {}
    for text in texts:
        found = re.fullmatch(r"([\w-]+)=(\d+(?:\.\d+)?)", text)
        if found is None or float(found[2]) == 0.0:
            raise IchfastError(
                f"--gpu takes NETWORK=RATE, such as resnext50=900, got {text!r}"
            )
        rates[found[1]] = float(found[2])
    return rates or {"any network (GPU: not measured)": None}


def _number_options(command: Any) -> Any:
    for name, quantity in reversed(ASSUMED.items()):
        command = click.option(
            f"--{name}",
            type=click.FloatRange(min=1),
            help=f"{quantity.unit}, {quantity.value:,.0f} if not measured.",
        )(command)
    return command


@click.command(context_settings={"show_default": True})
@click.option("--level", default="256", type=click.Choice(["512", "256"]))
@click.option("--size", default=224, help="Input side, pixels.")
@click.option(
    "--gpu",
    "gpus_rates",
    multiple=True,
    metavar="NETWORK=RATE",
    help="What one GPU trains at that size, slices/s; may be repeated.",
)
@click.option("--loader", type=click.FloatRange(min=1), help="slices/s a core.")
@_number_options
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A results file instead of the newest figures of bench/results/.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the picture. Without it, one in the cache folder.",
)
def main(
    *,
    level: str,
    size: int,
    gpus_rates: Sequence[str],
    results: Path | None,
    out: Path | None,
    **given: float | None,
) -> None:
    """Model training on 1 to 1,024 GPUs from local disks, NFS and an object store."""
    try:
        records = read_records(results) if results else read_newest(RESULTS_DIR)
        quantities = find_quantities(records, level=int(level), size=size, given=given)
        rates = parse_gpu_rates(gpus_rates)
        kinds = {"": False}
        if quantities.keys() >= set(PACKED):
            kinds[", packed"] = True
        predicted = {
            f"{network} at {size}{kind}": predict(
                storages(quantities),
                make_node(
                    quantities,
                    slice_bytes=SLICE_BYTES[int(level)],
                    gpu_per_s=rate,
                    is_packed=is_packed,
                ),
            )
            for network, rate in rates.items()
            for kind, is_packed in kinds.items()
        }
        check = check_ranks(records, level=int(level), size=size)
        folder = out or default_cache_dir() / "results"
        folder.mkdir(parents=True, exist_ok=True)
        figure = folder / "scale.png"
        with atomic_path(figure) as temporary:
            draw(predicted).savefig(
                temporary, format="png", dpi=DPI, metadata={"Software": None}
            )
    except IchfastError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
    click.echo(format_quantities(quantities))
    click.echo(f"\nslices/s of the whole job from level {level}, and what limits it\n")
    click.echo(format_prediction(predicted))
    click.echo("\n" + "\n".join(check))
    click.echo(f"\nwhat holds {NUM_SLICES:,} slices, and the disk that feeds a GPU\n")
    click.echo(format_capacity(encodings(records), rates))
    document = {
        "inputs": {name: asdict(each) for name, each in quantities.items()},
        "predicted": predicted,
        "check": check,
        "figure": str(figure),
    }
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
