"""The figures in README.md and in the docs, of the newest committed records.

python bench/readme.py

Rewrites the text between the marks, and bench/results/throughput.png. README.md has a
few cases. The tables of all stages but one are in docs/speed.md. Those of the stage
packed are in docs/packed.md, with a table to choose between a raw and a packed store.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench.harness.measure import BenchError, Record
from bench.harness.records import RESULTS_DIR, hardware_of, read_newest
from bench.harness.table import format_number
from bench.plot import write_figure
from bench.scaling.capacity import NUM_SLICES, Encoding, encodings
from bench.scaling.quantities import find_record, packed_record
from bench.stages import STAGES
from ichfast.store.levels import LEVELS, SOURCE_LEVEL
from ichfast.system.files import write_text_atomically

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKED_PAGE = ROOT / "docs" / "packed.md"
SPEED_PAGE = ROOT / "docs" / "speed.md"

BEGIN = "<!-- figures: `python bench/readme.py` writes them; do not edit -->"
END = "<!-- end of figures -->"
CHOICE_BEGIN = "<!-- raw or packed: `python bench/readme.py` writes it; do not edit -->"
CHOICE_END = "<!-- end of raw or packed -->"

SUMMARY = (
    (
        "DICOM files to a store",
        ("prepare", r"level 512, (?!1 )\d+ proc\., to memory", "cp -r"),
    ),
    ("stored slices, page cache", ("read", "hot", "memcpy, page cache")),
    ("stored slices, cold disk", ("read", "cold", "random read")),
    ("augmented batches, 512 to 224", ("loader", "level 512 to 224", "warp alone")),
    ("augmented batches, 256 to 224", ("loader", "level 256 to 224", "warp alone")),
    (
        "training EfficientNet-B0 at 224",
        ("train", "efficientnet-b0 at 224: from the loader", "resident batches"),
    ),
)
"""Rows of README's table: name; stage, pattern of the case and limit."""

PACKED_STAGE = "packed"
MODEL_SIZE = 224
"""Side of the images in the loader's cases that are shown, pixels."""

MISSING = "not measured"

LEVEL_NAMES = " / ".join(map(str, LEVELS))

CHOICE_RATES = (
    ("loader on a CPU, page cache", "cpu", "loader, level {} to {size}, page cache"),
    (
        "loader on a CPU, disk of 0.5 GB/s",
        "cpu",
        "loader, level {} to {size}, 0.5 GB/s",
    ),
    ("reading alone, page cache", "cpu", "reader, level {}, page cache"),
    ("reading alone, disk of 0.5 GB/s", "cpu", "reader, level {}, 0.5 GB/s"),
    ("loader, `--cache device`", "cuda", "--cache device, level {} to {size}"),
)
"""Rates in the table to choose by, each compared with a raw store's: name, device,
case."""

HEADER = "| stage | case | ichfast | limit | ichfast / limit | others |"
RULE = "|---|---|--:|--:|--:|---|"
FIGURE = (
    "![Medians of ichfast, its limits and its peers](../bench/results/throughput.png)"
)


def make_block(records: Sequence[Record]) -> str:
    """Make the figures of docs/speed.md: tables by machine and commit, newest first.

    Args:
        records: Of `read_newest`.
    """
    shown = [record for record in records if record.stage != PACKED_STAGE]
    parts = _make_tables(shown)
    measured = {record.stage for record in shown if record.estimate is not None}
    stages = [stage for stage in STAGES if stage != PACKED_STAGE]
    missing = [stage.replace("_", " ") for stage in stages if stage not in measured]
    if missing:
        parts.append(f"Not measured by a committed record: {', '.join(missing)}.")
    parts += _note_missing_gpu(shown)
    if measured:
        parts.append(FIGURE)
    return "\n\n".join(parts)


def make_summary(records: Sequence[Record]) -> str:
    """Make README's figures: `SUMMARY` on one machine.

    It is that of the newest record on a GPU; without any, that of the newest record.

    Args:
        records: Of `read_newest`, at least one.
    """
    newest = max(records, key=lambda each: (each.device != "cpu", each.date))
    machine = [each for each in records if hardware_of(each) == hardware_of(newest)]
    rows = {
        _summary_row(name, record, _compared_with(record, machine), limit): record
        for name, (stage, case, limit) in SUMMARY
        for record in machine
        if _is_measured(record, stage, case)
    }
    return "\n\n".join(
        [_summary_table(hardware_of(newest), rows), *_note_missing_gpu(records)]
    )


def _is_measured(record: Record, stage: str, case: str) -> bool:
    if record.role != "ichfast" or record.stage != stage or record.estimate is None:
        return False
    return re.fullmatch(case, _full_case(record)) is not None


def _summary_table(hardware: str, rows: Mapping[str, Record]) -> str:
    header = _row("", "ichfast", "fastest other", "limit")
    measured = sorted({(each.date[:10], each.commit) for each in rows.values()})
    commits = ", ".join(f"`{commit}` of {date}" for date, commit in measured)
    caption = f"Medians on {hardware}; commits {commits}; `~`: noisy."
    return "\n".join([header, "|---|--:|--:|--:|", *rows, "", caption])


def _summary_row(
    name: str, record: Record, others: Sequence[Record], limit: str
) -> str:
    measured = [each for each in others if each.estimate is not None]
    peers = [each for each in measured if each.role == "peer"]
    fastest = max(peers, key=_middle, default=None)
    return _row(
        name,
        f"{_median(record)} {record.unit}",
        f"{fastest.name} {_median(fastest)}" if fastest else "",
        "".join(f"{limit} {_median(each)}" for each in measured if each.name == limit),
    )


def _middle(record: Record) -> float:
    assert record.estimate is not None
    return record.estimate.median


def make_packed_block(records: Sequence[Record]) -> str:
    """Make the figures of docs/packed.md: those of the stage packed.

    Args:
        records: Of `read_newest`.
    """
    shown = [record for record in records if record.stage == PACKED_STAGE]
    return "\n\n".join(_make_tables(shown) + _note_missing_gpu(shown))


def _make_tables(records: Sequence[Record]) -> list[str]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.estimate is not None:
            groups.setdefault((hardware_of(record), record.commit), []).append(record)
    return [_make_table(group) for group in reversed(groups.values())]


def _note_missing_gpu(records: Sequence[Record]) -> list[str]:
    on_gpu = [each for each in records if each.estimate and each.device != "cpu"]
    return [] if on_gpu else ["On a GPU: not measured."]


def make_choice(records: Sequence[Record]) -> str:
    """Make the table of docs/packed.md to choose between a raw and a packed store.

    Args:
        records: Of `read_newest`.
    """
    by_name = {(each.level, each.name): each for each in encodings(records)}
    lines = [f"| {NUM_SLICES:,} slices | raw | packed |", "|---|--:|--:|"]
    for level in LEVELS:
        pair = [by_name[level, name] for name in ("raw", "packed")]
        lines.append(_row(f"level {level}", *map(_size, pair)))
        lines.append(_row("fits into", *map(_holders, pair)))
    unpacking = f"unpacking level {SOURCE_LEVEL}, out of cache"
    of_memcpy = _ratio_to(records, unpacking, "memcpy", "cpu")
    lines.append(_row("unpacking on one core, of memcpy", "", of_memcpy))
    for what, device, case in CHOICE_RATES:
        cases = [case.format(level, size=MODEL_SIZE) for level in LEVELS]
        ratios = [_ratio_to(records, each, "raw store", device) for each in cases]
        lines.append(_row(f"{what}, level {LEVEL_NAMES}", "1", " / ".join(ratios)))
    return "\n".join([*lines, "", _origin(records)])


def _ratio_to(records: Sequence[Record], case: str, limit: str, device: str) -> str:
    on_device = [record for record in records if record.device == device]
    record = find_record(on_device, PACKED_STAGE, case, limit)
    return f"{record.ratio.median:.2f}" if record and record.ratio else MISSING


def _origin(records: Sequence[Record]) -> str:
    """The caption of the table to choose by."""
    record = packed_record(records, SOURCE_LEVEL)
    if record is None:
        return "Not measured by a committed record."
    kind = "synthetic slices" if record.settings["synthetic"] else "slices"
    return (
        f"Measured with {record.settings['slices']:,} {kind}; {hardware_of(record)}; "
        f"commit `{record.commit}`, {record.date[:10]}."
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _size(encoding: Encoding) -> str:
    gb = encoding.total_gb
    return MISSING if gb is None else f"{gb:.1f} GB"


def _holders(encoding: Encoding) -> str:
    if encoding.total_gb is None:
        return MISSING
    gpu = encoding.holder("GPU")
    memory = f"{encoding.holder('memory')} of memory"
    return f"{memory}, no GPU" if gpu == "none" else f"{memory}, a GPU of {gpu}"


def _make_table(group: Sequence[Record]) -> str:
    last = group[-1]
    # A size that cannot vary has one value.
    turns = min((n for each in group if (n := len(each.values)) > 1), default=1)
    caption = (
        f"{hardware_of(last)}; commit `{last.commit}`, {last.date[:10]}; medians of "
        f"{turns} turns or more, `~` where they spread over more than a quarter:"
    )
    ours = [record for record in group if record.role == "ichfast"]
    first = {(each.stage, each.case): each for each in reversed(ours)}
    rows = [
        # Limits and peers are compared with the first of a case.
        _make_row(
            record,
            _compared_with(record, group)
            if first[record.stage, record.case] is record
            else [],
        )
        for record in ours
    ]
    return "\n".join([caption, "", HEADER, RULE, *rows])


def _compared_with(record: Record, group: Sequence[Record]) -> list[Record]:
    place = (record.stage, record.case)
    return [
        each
        for each in group
        if (each.stage, each.case) == place and each.role != "ichfast"
    ]


def _make_row(record: Record, others: Sequence[Record]) -> str:
    limits = [each for each in others if each.role == "limit"]
    peers = [each for each in others if each.role == "peer"]
    cells = (
        record.stage.replace("_", " "),
        _full_case(record),
        f"{_median(record)} {record.unit}",
        "<br>".join(f"{each.name} {_median(each)}" for each in limits),
        "<br>".join(f"{each.ratio.median:.2f}" for each in limits if each.ratio),
        "<br>".join(
            f"{each.name} {_median(each)}"
            + (f": {each.ratio.median:.1f} x" if each.ratio else "")
            for each in peers
        ),
    )
    return f"| {' | '.join(cells)} |"


def _full_case(record: Record) -> str:
    if record.name.startswith("ichfast"):
        return record.case
    return f"{record.case}: {record.name}"


def _median(record: Record) -> str:
    return ("~" if record.is_noisy else "") + format_number(_middle(record))


def replace_block(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """Replace the text between two marks.

    Args:
        text: A whole page.
        block: The new text.
        begin: The mark before it.
        end: The mark after it.

    Raises:
        BenchError: A mark is missing, repeated, or in the wrong order.
    """
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in after or end in after:
        raise BenchError(f"the page needs the lines {begin} and {end} once each")
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def make_pages(records: Sequence[Record]) -> dict[Path, str]:
    """Make the text of each page anew.

    Args:
        records: Of `read_newest`.

    Raises:
        BenchError: A page lacks a mark.
    """
    blocks = {
        README: make_summary(records),
        SPEED_PAGE: make_block(records),
        PACKED_PAGE: make_packed_block(records),
    }
    pages = {
        path: replace_block(path.read_text(encoding="utf-8"), block)
        for path, block in blocks.items()
    }
    pages[PACKED_PAGE] = replace_block(
        pages[PACKED_PAGE], make_choice(records), CHOICE_BEGIN, CHOICE_END
    )
    return pages


def main() -> int:
    """Write the pages and the picture; returns the exit status."""
    try:
        records = read_newest(RESULTS_DIR)
        pages = make_pages(records)
        shown = [record for record in records if record.stage != PACKED_STAGE]
        hardware = hardware_of(shown[-1]) if shown else ""
        newest = [record for record in shown if hardware_of(record) == hardware]
        write_figure(newest, RESULTS_DIR / "throughput.png")
        for path, text in pages.items():
            write_text_atomically(path, text)
    except (BenchError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(*pages, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
