"""Synthetic head CT as DICOM files, with drawn hemorrhages and their label csv.

    OUT/dicom/<SeriesInstanceUID>/<SOPInstanceUID>.dcm
    OUT/labels.csv            RSNA's long form; written last, so it means done

Promises:

1. The same arguments give the same bytes, with any number of threads.
2. A label is 1 exactly where the slice shows that bleed. A slice without a bleed has
   the pixels of the same head without any bleed.
3. The files have the elements, the encodings and the defects of the RSNA 2019 files
   (`ichfast.synth.scanner`). They hold no pixel and no header value of a patient.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ichfast.errors import RecipeError, SourceError
from ichfast.labels import CLASSES
from ichfast.synth.anatomy import Anatomy, draw_anatomy
from ichfast.synth.canvas import Field, Grid
from ichfast.synth.hemorrhage import SUBTYPES, Bleed, draw_bleed
from ichfast.synth.phantom import Phantom
from ichfast.synth.scanner import (
    SCANNERS,
    WRAPPED_SCANNER,
    Header,
    Scanner,
    encode_header,
    encode_pixels,
    noise_patch,
    noise_strength,
    scan_circle,
)
from ichfast.system.files import output_path
from ichfast.system.terminal import progress

logger = logging.getLogger(__name__)

RSNA_PREVALENCE: dict[str, float] = {
    "epidural": 0.0041,
    "intraparenchymal": 0.0483,
    "intraventricular": 0.0352,
    "subarachnoid": 0.0476,
    "subdural": 0.0630,
}
"""Share of slices with each bleed.

Source:
    `stage_1_train.csv` of the RSNA 2019 competition, 674,258 slices.
"""

TRUNCATED_BYTES = 153_710
"""Bytes of pixels in the competition's ID_6431af929, which should be 524,288."""

TRUNCATED_FROM = 40
"""Smallest set with a truncated file: one of 40 slices is 2.5 %."""

NUM_DUPLICATED_SLICES = 4
"""Slices whose six label rows occur twice in RSNA's csv."""

RARE_SHAPES = ((638, 490), (436, 436), (408, 374), (464, 464), (666, 512), (768, 768))
"""Shapes of RSNA's slices that are not 512x512, rows and columns."""

RARE_SHAPE_EVERY, WRAPPED_EVERY = 80, 125
"""One of 80 series has a rare shape, one of 125 has wrapped 12-bit pixels (0.8 %)."""

MIN_SIZE, MAX_SIZE = 64, 512
"""Range of `size`, pixels."""

EXTENT_MM = {
    "epidural": 41.0,
    "intraparenchymal": 28.0,
    "intraventricular": 28.0,
    "subarachnoid": 51.0,
    "subdural": 63.0,
}
"""Average height over which a drawn bleed is seen, mm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthReport:
    """What `synthesize` wrote."""

    slices: int
    series: int
    patients: int
    positives: dict[str, int]
    """Slices with each of the six classes, in `labels.CLASSES` order."""
    truncated: str | None
    """Id of the slice whose pixel data is cut off, or None."""
    dicom_dir: Path
    labels_path: Path


class _Series(NamedTuple):
    """All that is decided before the first slice of a series is drawn."""

    number: int
    patient: int
    anatomy: Anatomy
    scanner: Scanner
    is_implicit: bool
    grid: Grid
    heights: tuple[float, ...]
    tilt: float
    """Angle of the gantry, rad."""
    noise_hu: float
    holder_mm: float
    """Radius of the head holder."""


class _Quota:
    """Decides which series bleed, so that the wanted share of slices shows it.

    A series adds to the slices that are owed of each subtype; each slice that shows the
    subtype takes one off.
    """

    def __init__(self, prevalence: Mapping[str, float]) -> None:
        self._prevalence = prevalence
        self._owed = dict.fromkeys(SUBTYPES, 0.0)

    def draw(self, rng: np.random.Generator, heights: Sequence[float]) -> list[Bleed]:
        """Draw the bleeds of the next series."""
        spacing_mm = (heights[-1] - heights[0]) / max(len(heights) - 1, 1) or 5.0
        slices = {name: EXTENT_MM[name] / spacing_mm for name in SUBTYPES}
        for name in SUBTYPES:
            owed = self._owed[name] + self._prevalence[name] * len(heights)
            self._owed[name] = min(
                owed, len(heights)
            )  # an unreachable share cannot grow
        # Bleeds come together: most series have none, some have several.
        share = max(self._prevalence[n] * len(heights) / slices[n] for n in SUBTYPES)
        if rng.random() > 2.5 * share:
            return []
        bleeds = []
        for name in SUBTYPES:
            owed = self._owed[name]
            while owed > rng.uniform(0.2, 1.0) * slices[name]:
                bleeds.append(draw_bleed(rng, name))
                owed -= slices[name]
        return bleeds

    def pay(self, seen: Sequence[str]) -> None:
        """Count the subtypes that one slice shows."""
        for name in seen:
            self._owed[name] -= 1.0


def synthesize(
    out: Path,
    *,
    num_slices: int,
    seed: int = 0,
    prevalence: Mapping[str, float] | None = None,
    quirks: bool = True,
    size: int = 512,
) -> SynthReport:
    """Write a synthetic data set in the form of RSNA's: DICOM files and label csv.

    Args:
        out: A new or empty folder.
        num_slices: Slices to write, 1 or more. A series has 20 to 40.
        seed: 0 or more; another seed gives other patients.
        prevalence: Share of slices, 0 to 1, by subtype; RSNA's for a subtype that is
            missing. Shares above 0.4 are not reached. Intraventricular bleeds end
            where the ventricles end, so they do not reach more than 0.25.
        quirks: Also write RSNA's rare defects: rare shapes, wrapped 12-bit pixels,
            one file with truncated pixels (of size 512, in sets of 40 slices or
            more), label rows that occur twice.
        size: Rows and columns of a slice, 64 to 512; the field of view stays.

    Raises:
        SourceError: `out` is not empty, or cannot be written to.
        RecipeError: A value is out of its range, or a subtype is unknown.
    """
    wanted = {**RSNA_PREVALENCE, **(prevalence or {})}
    _check(num_slices, seed, wanted, size)
    _check_empty(out)
    quota = _Quota(wanted)
    labels: dict[str, tuple[str, ...]] = {}
    plan = list(_plan(num_slices, seed, size, quirks=quirks))
    may_truncate = quirks and size == 512 and num_slices >= TRUNCATED_FROM
    truncated = None
    try:
        with progress("synth", num_slices, "slice") as bar:
            for series in plan:
                folder = out / "dicom" / _pseudonym(seed, "series", series.number)
                folder.mkdir(parents=True)
                for header, pixels, seen in _scan(series, seed, quota, len(labels)):
                    kept = pixels
                    if may_truncate and truncated is None and not seen:
                        truncated = header.slice_id
                        kept = pixels[:TRUNCATED_BYTES]
                    _write(folder, series, header, kept)
                    labels[header.slice_id] = seen
                    bar.update(1)
        with output_path(out / "labels.csv", SourceError) as temporary:
            temporary.write_text(_label_csv(labels, quirks=quirks), "utf-8")
    except OSError as error:
        raise SourceError(f"cannot write to {out}: {error.strerror}") from error
    report = SynthReport(
        slices=len(labels),
        series=len(plan),
        patients=len({series.patient for series in plan}),
        positives={
            name: sum(_label(seen, name) for seen in labels.values())
            for name in CLASSES
        },
        truncated=truncated,
        dicom_dir=out / "dicom",
        labels_path=out / "labels.csv",
    )
    logger.info("wrote %d slices of %d series", report.slices, report.series)
    return report


def _check(
    num_slices: int, seed: int, prevalence: Mapping[str, float], size: int
) -> None:
    if num_slices < 1:
        raise RecipeError(f"num_slices must be 1 or more, got {num_slices}")
    if seed < 0:
        raise RecipeError(f"the seed must be 0 or more, got {seed}")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise RecipeError(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    for name, share in prevalence.items():
        if name not in SUBTYPES:
            raise RecipeError(
                f"prevalence takes {', '.join(SUBTYPES)}; got {name!r} "
                "(`any` follows from the five)"
            )
        if not 0.0 <= share <= 1.0:
            raise RecipeError(f"the prevalence of {name} must be 0 to 1, got {share}")


def _check_empty(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SourceError(
            f"{out} exists and is not an empty folder; synthetic slices need a new or "
            "empty folder: name another, or remove this one"
        )


def _plan(num_slices: int, seed: int, size: int, *, quirks: bool) -> Iterator[_Series]:
    """Decide one series after the other until they hold `num_slices`."""
    number, left = 0, num_slices
    for patient in count():
        rng = np.random.default_rng((seed, 0, patient))
        anatomy = draw_anatomy(rng)
        for _ in range(int(rng.choice((1, 2, 3), p=(0.87, 0.1, 0.03)))):
            is_rare = quirks and number % RARE_SHAPE_EVERY == 7
            is_wrapped = quirks and number % WRAPPED_EVERY == 3
            heights = _draw_heights(rng, anatomy, left)
            yield _Series(
                number=number,
                patient=patient,
                anatomy=anatomy,
                scanner=WRAPPED_SCANNER if is_wrapped else _draw_scanner(rng),
                is_implicit=bool(rng.random() < 0.4),
                grid=_draw_grid(rng, number, size, is_rare=is_rare),
                heights=heights,
                tilt=float(rng.normal(0.26, 0.1) if rng.random() < 0.55 else 0.0),
                noise_hu=float(rng.uniform(3.2, 5.8)),
                holder_mm=float(rng.uniform(112.0, 120.0)),
            )
            number += 1
            left -= len(heights)
            if left == 0:
                return


def _draw_scanner(rng: np.random.Generator) -> Scanner:
    share = [scanner.share for scanner in SCANNERS]
    return SCANNERS[rng.choice(len(SCANNERS), p=share)]


def _draw_grid(
    rng: np.random.Generator, number: int, size: int, *, is_rare: bool
) -> Grid:
    view_mm = float(rng.choice((230.0, 240.0, 250.0), p=(0.2, 0.2, 0.6)))
    rows, columns = size, size
    if is_rare:
        shape = RARE_SHAPES[number // RARE_SHAPE_EVERY % len(RARE_SHAPES)]
        rows, columns = (pixels * size // 512 for pixels in shape)
    return Grid(
        rows=rows,
        columns=columns,
        spacing_mm=view_mm / min(rows, columns),
        rotation=float(rng.normal(0.0, 0.06)),
        x_mm=float(rng.normal(0.0, 3.0)),
        y_mm=float(rng.normal(-4.0, 5.0)),
    )


def _draw_heights(
    rng: np.random.Generator, anatomy: Anatomy, max_slices: int
) -> tuple[float, ...]:
    """Draw the slices' heights from the bottom up, mm; most are 5 mm apart."""
    bottom = rng.uniform(-28.0, -14.0)
    top = anatomy.vertex + rng.uniform(-6.0, 6.0)
    spacing_mm = rng.choice((5.0, 4.0), p=(0.8, 0.2))
    heights = np.arange(bottom, top, spacing_mm)
    if rng.random() < 0.25:  # thinner slices through the skull base
        fine = np.arange(bottom, 30.0, 3.0)
        heights = np.concatenate((fine, np.arange(fine[-1] + spacing_mm, top, 5.0)))
    if len(heights) > max_slices:  # the last series: fewer slices, still a whole head
        heights = np.linspace(bottom, top, max_slices + 2)[1:-1]
    return tuple(heights.tolist())


def _scan(
    series: _Series, seed: int, quota: _Quota, first_slice: int
) -> Iterator[tuple[Header, bytes, tuple[str, ...]]]:
    """Draw a series: header, raw pixels and visible subtypes of each slice."""
    grid = series.grid
    # Bleeds and noise have their own generators, so that a seed draws the same heads
    # for every prevalence.
    bleeds = quota.draw(np.random.default_rng((seed, 1, series.number)), series.heights)
    rng = np.random.default_rng((seed, 2, series.number))
    phantom = Phantom(series.anatomy, grid)
    surround_HW = _surround(grid, series.holder_mm)
    outside_HW = scan_circle(grid.rows, grid.columns)
    strength_HW = noise_strength(grid.rows, grid.columns, series.noise_hu)
    lift = 1.0 / np.cos(series.tilt)
    for number, height in enumerate(series.heights, start=first_slice):
        hu_HW, seen = phantom.draw(surround_HW, height, bleeds)
        hu_HW += noise_patch(rng, grid.rows, grid.columns) * strength_HW
        quota.pay(seen)
        header = Header(
            slice_id=_pseudonym(seed, "slice", number),
            patient_id=_pseudonym(seed, "patient", series.patient),
            study_uid=_pseudonym(seed, "study", series.number),
            series_uid=_pseudonym(seed, "series", series.number),
            grid=grid,
            height_mm=100.0 + height * lift,
            tilt=series.tilt,
        )
        yield header, encode_pixels(series.scanner, hu_HW, outside_HW), seen


def _surround(grid: Grid, holder_mm: float) -> Field:
    """Air and the head holder, a thin cup below the head, shape (H, W), HU."""
    row_mm = (np.arange(grid.rows) + 0.5 - grid.rows / 2) * grid.spacing_mm - grid.y_mm
    column_mm = np.arange(grid.columns) + 0.5 - grid.columns / 2
    column_mm = column_mm * grid.spacing_mm - grid.x_mm
    down, right = np.meshgrid(row_mm, column_mm, indexing="ij")
    away_mm = np.hypot(np.where(down < 0, 0.0, down), right) - holder_mm
    wall = np.clip(2.2 - np.abs(away_mm), 0.0, 1.0) * (down > -0.3 * holder_mm)
    return (-1002.0 + 900.0 * wall).astype(np.float32)


def _write(folder: Path, series: _Series, header: Header, pixels: bytes) -> None:
    head = encode_header(series.scanner, header, is_implicit=series.is_implicit)
    with (folder / f"{header.slice_id}.dcm").open("wb") as stream:
        stream.write(head)
        stream.write(pixels)


_DIGITS = {"slice": 9, "patient": 8, "study": 10, "series": 10}


def _pseudonym(seed: int, kind: str, number: int) -> str:
    """Give ``ID_`` and hexadecimal digits, as RSNA does; no two numbers share one."""
    bits = 4 * _DIGITS[kind]
    mask = (1 << bits) - 1
    value = (number + 7919 * seed + 65_537 * len(kind)) & mask
    for _ in range(2):  # odd factors and shifted exclusive ors can be undone
        value = value * 0x9E3779B97F4A7C15 & mask
        value ^= value >> (bits // 2)
    return f"ID_{value:0{_DIGITS[kind]}x}"


def _label(seen: Sequence[str], name: str) -> int:
    return int(bool(seen) if name == "any" else name in seen)


def _label_csv(labels: Mapping[str, Sequence[str]], *, quirks: bool) -> str:
    """Write labels in RSNA's order: by id, `any` last; some slices occur twice."""
    ids = sorted(labels)
    if quirks:
        step = max(len(ids) // NUM_DUPLICATED_SLICES, 1)
        ids = sorted(ids + ids[::step][:NUM_DUPLICATED_SLICES])
    rows = [
        f"{slice_id}_{name},{_label(labels[slice_id], name)}\n"
        for slice_id in ids
        for name in (*SUBTYPES, "any")
    ]
    return "ID,Label\n" + "".join(rows)
