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
from pathlib import Path

import numpy as np

from ichfast.errors import RecipeError, SourceError
from ichfast.labels import CLASSES
from ichfast.synth.canvas import Field, Grid
from ichfast.synth.hemorrhage import SUBTYPES, Bleed, draw_bleed
from ichfast.synth.phantom import Phantom
from ichfast.synth.scanner import (
    Header,
    Noise,
    encode_header,
    encode_pixels,
    scan_circle,
)
from ichfast.synth.series import Series, plan, thicknesses
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

DRAWING = 2
"""Changes when the same arguments give other heads than before."""

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
    planned = list(plan(num_slices, seed, size, quirks=quirks))
    may_truncate = quirks and size == 512 and num_slices >= TRUNCATED_FROM
    truncated = None
    try:
        with progress("synth", num_slices, "slice") as bar:
            for series in planned:
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
        series=len(planned),
        patients=len({series.patient for series in planned}),
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


def _scan(
    series: Series, seed: int, quota: _Quota, first_slice: int
) -> Iterator[tuple[Header, bytes, tuple[str, ...]]]:
    """Draw a series: header, raw pixels and visible subtypes of each slice."""
    grid = series.grid
    # Bleeds and noise have their own generators, so that a seed draws the same heads
    # for every prevalence.
    bleeds = quota.draw(np.random.default_rng((seed, 1, series.number)), series.heights)
    phantom = Phantom(series.anatomy, grid, edge_mm=series.kernel.edge_mm)
    surround_HW = _surround(grid, series.holder_mm)
    outside_HW = scan_circle(grid.rows, grid.columns)
    lift = 1.0 / np.cos(series.tilt)
    noise = Noise(
        np.random.default_rng((seed, 2, series.number)),
        grid,
        series.kernel,
        noise_hu=series.noise_hu,
        is_helical=series.is_helical,
    )
    slices = zip(series.heights, thicknesses(series.heights), strict=True)
    for number, (height, thickness_mm) in enumerate(slices, start=first_slice):
        hu_HW, seen = phantom.draw(
            surround_HW, height, bleeds, thickness_mm=thickness_mm
        )
        hu_HW += noise.draw(thickness_mm)
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
    wall = np.clip(2.0 - np.abs(away_mm), 0.0, 1.0) * (down > 0.15 * holder_mm)
    return (-1002.0 + 1180.0 * wall).astype(np.float32)


def _write(folder: Path, series: Series, header: Header, pixels: bytes) -> None:
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
