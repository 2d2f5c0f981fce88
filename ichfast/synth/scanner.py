"""Noise, encoding and header of a slice, as the scanners of the RSNA 2019 set write it.

The elements, their order and the way their values are written are those of RSNA's
files: 22 elements, ``ID_<hex>`` where DICOM wants UIDs, no padding tag, no dates.

Source:
    Headers of 2,212 RSNA slices of 109 series, and published scans of all of them.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ichfast.synth.canvas import Field, Grid

MIN_HU, MAX_HU = -1024, 3071
"""Range of the HU that a scanner writes inside its scan circle."""

NOISE_SIDE = 1024
"""Rows and columns of the plane that patches of noise are cut from."""

EXPLICIT_LE, IMPLICIT_LE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


class Kernel(NamedTuple):
    """A reconstruction kernel: a sharper one blurs less and is noisier.

    Source:
        Neighbouring pixels of the noise in flat brain of 8 series and 14 slices,
        RSNA's and others, correlate by 0.49 to 0.73; the four families of RSNA's
        scanners by 0.60 to 0.71.
    """

    share: float
    """Share of all series; the shares add up to 1."""
    peak: float
    """Frequency around which the noise lies, cycles a pixel."""
    noise: float
    """Strength of the noise beside that of the standard kernel."""
    edge_mm: float
    """Width over which a sharp edge is blurred."""


KERNELS = {
    "smooth": Kernel(0.4, peak=0.155, noise=0.8, edge_mm=1.0),
    "standard": Kernel(0.4, peak=0.175, noise=1.0, edge_mm=0.8),
    "sharp": Kernel(0.2, peak=0.2, noise=1.3, edge_mm=0.6),
}
"""Kernels by name, the smoothest first."""

THICK_MM = 5.0
"""Thickness of a slice whose noise has the nominal strength."""

PIXEL_MM = 0.5
"""Spacing of pixels whose noise has the nominal strength."""


class Scanner(NamedTuple):
    """How one family of scanners writes its files."""

    share: float
    """Share of all series; the shares add up to 1."""
    bits: int
    """(0028,0101) Bits Stored: 16 with a sign, 12 without."""
    center: str
    """(0028,1050) Window Center, HU, as written."""
    width: str
    """(0028,1051) Window Width, HU, as written."""
    intercept: int = -1024
    slope: str = "1"
    padding_raw: int | None = None
    """Written outside the scan circle; None: air fills the square."""
    wraps: bool = False
    """4096 is added to negative HU: 12 bits unsigned without an offset."""

    @property
    def is_signed(self) -> bool:
        """Whether stored values have a sign."""
        return self.bits == 16


SCANNERS = (
    Scanner(0.25, 12, r"00040\00040", r"00080\00080"),
    Scanner(0.17, 12, r"00036\00036", r"00080\00080"),
    Scanner(0.07, 12, r"40\40", r"80\80"),
    Scanner(0.26, 16, "30", "80", padding_raw=-2000),
    Scanner(0.15, 16, "35", "100", padding_raw=-2000),
    Scanner(0.07, 16, "50", "100", slope="1.0", padding_raw=-1024),
    Scanner(0.03, 16, "40", "100", intercept=0, padding_raw=-3024),
)
"""The families, with rounded shares."""

WRAPPED_SCANNER = SCANNERS[0]._replace(share=0.0, intercept=0, wraps=True)
"""The 0.8 % of series whose HU below 0 have wrapped to 3096 and above."""


class Header(NamedTuple):
    """The header values that differ between slices of one scanner."""

    slice_id: str
    patient_id: str
    study_uid: str
    series_uid: str
    grid: Grid
    height_mm: float
    """Along the table; the third of the numbers of (0020,0032) Image Position."""
    tilt: float
    """Angle of the gantry, rad: 0 is upright."""


def scan_circle(rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """Mark the pixels outside the scanner's circle, shape (H, W).

    Args:
        rows: H.
        columns: W.
    """
    row = (np.arange(rows) + 0.5) / rows * 2 - 1
    column = (np.arange(columns) + 0.5) / columns * 2 - 1
    outside: npt.NDArray[np.bool_] = np.hypot(row[:, np.newaxis], column) > 1.0
    return outside


class Noise:
    """The noise of a series, slice by slice: strongest in the middle.

    Args:
        rng: Decides which parts of the noise plane are taken.
        grid: The pixels. Larger ones collect more photons.
        kernel: Decides the correlation between neighbouring pixels.
        noise_hu: Deviation in the middle for the standard kernel, pixels of `PIXEL_MM`
            and slices of `THICK_MM`, HU.
        is_helical: Neighbouring slices share half of their photons.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        grid: Grid,
        kernel: Kernel,
        *,
        noise_hu: float,
        is_helical: bool,
    ) -> None:
        self._rng, self._kernel, self._is_helical = rng, kernel, is_helical
        row = np.linspace(-1.0, 1.0, grid.rows, dtype=np.float32)[:, np.newaxis]
        column = np.linspace(-1.0, 1.0, grid.columns, dtype=np.float32)
        bulge_HW = 0.4 + 0.6 * np.exp(-3.5 * (row * row + column * column))
        dose = (grid.spacing_mm / PIXEL_MM) ** 0.5 / kernel.noise
        self._strength_HW: Field = bulge_HW * np.float32(noise_hu / dose)
        self._patch_HW = self._draw_patch()

    def draw(self, thickness_mm: float) -> Field:
        """Draw the noise of the next slice, HU, shape (H, W).

        Args:
            thickness_mm: A thicker slice collects more photons.
        """
        before_HW, self._patch_HW = self._patch_HW, self._draw_patch()
        scale = (THICK_MM / thickness_mm) ** 0.5
        if self._is_helical:
            noise_HW = (before_HW + self._patch_HW) * self._strength_HW
            scale *= 0.5**0.5
        else:
            noise_HW = self._patch_HW * self._strength_HW
        noise_HW *= np.float32(scale)
        return noise_HW

    def _draw_patch(self) -> Field:
        """Noise of deviation 1, shape (H, W)."""
        rows, columns = self._strength_HW.shape
        row = int(self._rng.integers(NOISE_SIDE - rows + 1))
        column = int(self._rng.integers(NOISE_SIDE - columns + 1))
        plane = _noise_plane(self._kernel.peak)
        patch_HW = plane[row : row + rows, column : column + columns]
        flips = self._rng.choice((-1, 1)), self._rng.choice((-1, 1))
        return patch_HW[:: flips[0], :: flips[1]]


def encode_pixels(
    scanner: Scanner, hu_HW: Field, outside_HW: npt.NDArray[np.bool_]
) -> bytes:
    """Write HU as the scanner's raw 16-bit little-endian values.

    Args:
        scanner: Decides sign, offset, padding and wrap.
        hu_HW: HU, shape (H, W). Overwritten.
        outside_HW: Pixels outside the scan circle, shape (H, W).
    """
    np.rint(hu_HW, out=hu_HW)
    np.clip(hu_HW, -1000 if scanner.wraps else MIN_HU, MAX_HU, out=hu_HW)
    raw_HW = hu_HW.astype("<i2")
    if scanner.wraps:
        raw_HW &= 0xFFF
    else:
        raw_HW -= scanner.intercept
    if scanner.padding_raw is not None:
        raw_HW[outside_HW] = scanner.padding_raw
    return raw_HW.tobytes()


def encode_header(scanner: Scanner, header: Header, *, is_implicit: bool) -> bytes:
    """Write all elements before the pixels, and the tag and length of the pixels.

    Args:
        scanner: Decides bits, window and rescale.
        header: What is particular to the slice.
        is_implicit: Implicit VR little-endian, else explicit.
    """
    rows, columns, spacing_mm, *_ = header.grid
    x, y = -columns * spacing_mm / 2, -rows * spacing_mm / 2 + 20.0
    cos, sin = np.cos(header.tilt), np.sin(header.tilt)
    spacing = f"{spacing_mm:.6f}"
    elements: tuple[tuple[int, int, str, str | int], ...] = (
        (0x0008, 0x0018, "UI", header.slice_id),
        (0x0008, 0x0060, "CS", "CT"),
        (0x0010, 0x0020, "LO", header.patient_id),
        (0x0020, 0x000D, "UI", header.study_uid),
        (0x0020, 0x000E, "UI", header.series_uid),
        (0x0020, 0x0010, "SH", ""),
        (0x0020, 0x0032, "DS", f"{x:.6f}\\{y:.6f}\\{header.height_mm:.6f}"),
        (0x0020, 0x0037, "DS", f"1\\0\\0\\0\\{cos:.9g}\\{-sin:.9g}"),
        (0x0028, 0x0002, "US", 1),
        (0x0028, 0x0004, "CS", "MONOCHROME2"),
        (0x0028, 0x0010, "US", rows),
        (0x0028, 0x0011, "US", columns),
        (0x0028, 0x0030, "DS", f"{spacing}\\{spacing}"),
        (0x0028, 0x0100, "US", 16),
        (0x0028, 0x0101, "US", scanner.bits),
        (0x0028, 0x0102, "US", scanner.bits - 1),
        (0x0028, 0x0103, "US", int(scanner.is_signed)),
        (0x0028, 0x1050, "DS", scanner.center),
        (0x0028, 0x1051, "DS", scanner.width),
        (0x0028, 0x1052, "DS", str(scanner.intercept)),
        (0x0028, 0x1053, "DS", scanner.slope),
    )
    body = b"".join(_element(*each, is_implicit=is_implicit) for each in elements)
    pixel_vr = b"" if is_implicit else b"OW\0\0"
    pixel_tag = struct.pack("<HH", 0x7FE0, 0x0010) + pixel_vr
    pixel_length = struct.pack("<I", rows * columns * 2)
    meta = _file_meta(header.slice_id, is_implicit=is_implicit)
    return meta + body + pixel_tag + pixel_length


def _file_meta(slice_id: str, *, is_implicit: bool) -> bytes:
    # In RSNA's files this UID comes from the scanner. It is numeric and differs from
    # the pseudonym.
    instance = f"2.25.{int(slice_id.removeprefix('ID_'), 16)}"
    elements = (
        (0x0002, 0x0001, "OB", "\0\1"),
        (0x0002, 0x0002, "UI", CT_IMAGE_STORAGE),
        (0x0002, 0x0003, "UI", instance),
        (0x0002, 0x0010, "UI", IMPLICIT_LE if is_implicit else EXPLICIT_LE),
        (0x0002, 0x0012, "UI", "2.25.2019"),
        (0x0002, 0x0013, "SH", "ichfast synth"),
    )
    body = b"".join(_element(*element, is_implicit=False) for element in elements)
    length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(body))
    return bytes(128) + b"DICM" + length + body


def _element(
    group: int, number: int, vr: str, value: str | int, *, is_implicit: bool
) -> bytes:
    if isinstance(value, int):
        content = struct.pack("<H", value)
    else:
        content = value.encode("ascii")
        if len(content) % 2:
            content += b"\0" if vr == "UI" else b" "
    tag = struct.pack("<HH", group, number)
    if is_implicit:
        return tag + struct.pack("<I", len(content)) + content
    if vr == "OB":  # the one here whose length has four bytes
        return tag + struct.pack("<2sHI", vr.encode(), 0, len(content)) + content
    return tag + struct.pack("<2sH", vr.encode(), len(content)) + content


@lru_cache(maxsize=len(KERNELS))
def _noise_plane(peak: float) -> Field:
    rng = np.random.default_rng(512)
    white = rng.standard_normal((NOISE_SIDE, NOISE_SIDE), dtype=np.float32)
    frequency = np.hypot(
        np.fft.fftfreq(NOISE_SIDE)[:, np.newaxis], np.fft.rfftfreq(NOISE_SIDE)
    )
    # A ramp filter under a Gaussian roll-off.
    part = frequency / peak
    roll_off = np.sqrt(part) * np.exp(-0.5 * part**2)
    plane = np.fft.irfft2(np.fft.rfft2(white) * roll_off, s=white.shape)
    return (plane / plane.std()).astype(np.float32)
