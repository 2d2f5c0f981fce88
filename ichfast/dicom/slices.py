"""Reads one DICOM file into slices of uint16; nothing else in ichfast reads DICOM.

Promises:

1. `read_slices` yields slices or raises `RejectError`, for any bytes. Hostile bytes can
   make a decoder take much memory or time, or end its process. So `ichfast prepare`
   reads in worker processes that have a memory limit and a timer.
2. ``stored = clip(round(HU) + 1024, 0, 32767)``, ``HU = raw * slope + intercept``.
3. The header decides whether a file is read, before its pixels are. Sizes that a header
   states are checked before they are allocated.
4. Defects that were mended are named in `Slice.quirks`. MONOCHROME1 is named but not
   inverted: it defines how to show HU, not what they are.
5. No warning and no log line of pydicom is passed on: they may quote patient data.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import get_j2k_parameters

from ichfast.dicom import codestreams, guard, hounsfield, quirks
from ichfast.dicom.acquisition import read_exposure
from ichfast.dicom.guard import BudgetedBytes, ReadBudget
from ichfast.dicom.header import TAGS, Header, Layout, read_position
from ichfast.dicom.quirks import RawArray
from ichfast.dicom.sequences import raw_values, read_groups, read_items
from ichfast.dicom.series_header import SeriesHeader, read_series_header
from ichfast.dicom.walker import FLOAT_PIXELS, ITEM, UNDEFINED, Elements, Walker
from ichfast.errors import KIND_CODES, RejectError

_NATIVE_SYNTAXES = (
    *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian),
    *(uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
)
_PLUGINS = ("pyjpegls", "pylibjpeg", "pydicom")
"""Decoders of pydicom that are used, best first. GDCM is left out because it ends the
process on damaged JPEG 2000."""
_LUT = 0x0028_3000
_LUT_TAGS = frozenset((0x0028_3002, 0x0028_3006))
"""(0028,3002) LUTDescriptor and (0028,3006) LUTData."""
_LUT_TYPE_TAGS = frozenset((TAGS["ModalityLUTType"],))
_SHARED_GROUPS = 0x5200_9229
_FRAME_GROUPS = 0x5200_9230
_WANTED_TAGS = frozenset(TAGS.values())
_SEQUENCES = frozenset((_LUT, _SHARED_GROUPS, _FRAME_GROUPS))
_MAX_LUT_BYTES = 2 * 2**16
"""Upper limit of a value of a LUT: 65,536 entries of two bytes.

Source:
    DICOM PS3.3 C.11.1.1.
"""
_WALKER = Walker(_WANTED_TAGS, refused=_SEQUENCES | frozenset(FLOAT_PIXELS))

# Promise 5. `guard.reject_failures` silences the warnings.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One axial CT slice as it is stored."""

    stored_HW: npt.NDArray[np.uint16]
    """HU + 1024, clipped to [0, 32767]. Shape (rows, columns)."""

    slice_id: str
    """(0008,0018) SOPInstanceUID; frame k of a multi-frame file adds ``.k``. In a NIfTI
    volume its path and ``/k``, counted from 0."""

    series_header: SeriesHeader
    """Header values that it shares with its series."""

    position_mm: float
    """(0020,0032) along the normal of (0020,0037). NaN where unknown."""

    instance_number: int
    """(0020,0013), in a multi-frame file the number of the frame. -1 where absent."""

    rescale_slope: float
    rescale_intercept: float
    """(0028,1053) and (0028,1052) as applied: HU per raw step, HU of raw 0."""

    transfer_syntax_uid: str
    """(0002,0010). Empty where absent."""

    exposure_mas: float | None
    """Tube current times time, mAs. None where unknown."""

    rejected_frames: tuple[tuple[str, str], ...]
    """Reject codes of other frames of its file that are no slices, each with a detail
    that counts them."""

    quirks: tuple[str, ...]
    """Codes of `KIND_CODES` that were accepted, and defects that were mended, sorted:
    ``frame_count``, ``high_bit``, ``j2k_sign``, ``long_pixels``,
    ``malformed_number``, ``meta_uid``, ``missing_affine`` (NIfTI), ``missing_rescale``,
    ``modality_lut``, ``monochrome1``, ``no_preamble``, ``offset_table``, ``padding``,
    ``placeholder_patient``, ``two_windows``, ``unused_bits``, ``wrapped_12bit``,
    ``wrong_syntax``."""


def read_slices(
    content: bytes, accept: frozenset[str] = frozenset()
) -> Iterator[Slice]:
    """Read the slices of one DICOM file, one after another.

    Args:
        content: the whole file.
        accept: some of `KIND_CODES`, whose images are read all the same.

    Yields:
        One slice for each frame that is an axial CT slice in HU.

    Raises:
        RejectError: the file cannot become slices, and those already yielded do not
            count. Any code of `REJECT_CODES` except those of `ichfast.sources` and
            `ichfast.prepare`; the detail holds no patient data.
    """
    with guard.reject_failures("bad-header", "header"):
        file = _parse(content)
        series_header = read_series_header(file.elements, accept)
        missing = _missing_elements(file, content, series_header.layout)
        if missing:
            file = replace(file, elements=_merged(missing, file.elements))
            series_header = read_series_header(file.elements, accept)
        header = Header(file.elements)
        if not header.identifier("SOPInstanceUID"):
            raise RejectError("bad-header", "SOPInstanceUID is missing")
        frame_headers = _frame_headers(file, header, series_header, accept)
        rejected_frames = _rejected_frames(frame_headers)
        frames = _read_frames(file, series_header.layout)
    for number, frame_header in enumerate(frame_headers, start=1):
        slice_ = None
        with guard.reject_failures("decoder-error", "pixels"):
            raw_HW = next(frames)
            if not isinstance(frame_header, RejectError):
                slice_ = _make_slice(
                    file,
                    series_header.layout,
                    frame_header,
                    (number, raw_HW),
                    rejected_frames,
                )
            if number == len(frame_headers) and next(frames, None) is not None:
                raise RejectError("decoder-error", "more frames than the header states")
        if slice_ is not None:
            yield slice_


# ---- header ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """A file whose header is read."""

    sequences: Dataset | None
    """The sequences that are read; None where there are none."""
    budget: ReadBudget
    """Limits what is parsed of the sequences."""
    elements: Elements
    syntax: str
    content: bytes
    """The file, or its inflated data set."""
    pixels_at: int
    """Offset of the pixels in `content`, bytes."""
    pixels_bytes: int
    """Length in the header; `UNDEFINED` where the pixels are encapsulated."""
    quirks: set[str]


def _parse(content: bytes) -> _File:
    start, has_preamble = guard.find_start(content)
    walked = _WALKER.walk(content, start)
    if walked is None:
        return _parse_with_pydicom(content, start, has_preamble=has_preamble)
    return _File(
        sequences=None,
        budget=ReadBudget(),
        elements=walked.elements,
        syntax=walked.syntax,
        content=content,
        pixels_at=walked.pixels_at,
        pixels_bytes=walked.pixels_bytes,
        quirks=set() if has_preamble else {"no_preamble"},
    )


def _parse_with_pydicom(content: bytes, start: int, *, has_preamble: bool) -> _File:
    budget = ReadBudget()
    stream = BudgetedBytes(content, budget)
    stream.seek(start)
    syntax = _read_meta(stream).text("TransferSyntaxUID")
    start = stream.tell()
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        content, start = guard.inflate(content[start:]), 0
        stream = BudgetedBytes(content, budget)
    is_implicit = syntax == uid.ImplicitVRLittleEndian
    if not syntax:
        vr = content[start + 4 : start + 6]
        is_implicit = not (vr.isalpha() and vr.isupper())
    search = guard.PixelSearch(stream, len(content))
    dataset = read_dataset(
        stream,
        is_implicit_VR=is_implicit,
        is_little_endian=syntax != uid.ExplicitVRBigEndian,
        stop_when=search,
        specific_tags=[*_WANTED_TAGS, *_SEQUENCES],
    )
    search.check()
    elements = raw_values(dataset, _WANTED_TAGS)
    for item in (read_items(dataset, _LUT, budget) or ())[:1]:
        elements = _merged(raw_values(item, _LUT_TYPE_TAGS), elements)
    return _File(
        sequences=dataset,
        budget=budget,
        elements=elements,
        syntax=syntax,
        content=content,
        pixels_at=search.at,
        pixels_bytes=search.length,
        quirks=set() if has_preamble else {"no_preamble"},
    )


def _read_meta(stream: BudgetedBytes) -> Header:
    """Read the file meta information, and stop behind it."""
    meta = read_dataset(
        stream,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >> 16 != 2,
    )
    return Header(raw_values(meta, _WANTED_TAGS))


def _missing_elements(file: _File, content: bytes, layout: Layout) -> Elements:
    """Find the UID of a file in its meta information, and count its frames.

    Returns:
        SOPInstanceUID and NumberOfFrames, if they are missing and were found.
    """
    header, found = Header(file.elements), dict[int, tuple[bytes, bool]]()
    if not header.text("SOPInstanceUID"):
        stream = BudgetedBytes(content, file.budget)
        stream.seek(guard.find_start(content)[0])
        meta_uid = _read_meta(stream).text("MediaStorageSOPInstanceUID")
        if meta_uid:
            file.quirks.add("meta_uid")
            found[TAGS["SOPInstanceUID"]] = meta_uid.encode(), True
    num_frames = _count_frames(file, layout) if layout.num_frames == 1 else 1
    if num_frames > 1 and header.number("NumberOfFrames", 0) == 0:
        file.quirks.add("frame_count")
        found[TAGS["NumberOfFrames"]] = str(num_frames).encode(), True
    return found


def _count_frames(file: _File, layout: Layout) -> int:
    """Count the frames by the pixels; 1 where these are damaged."""
    if file.pixels_bytes != UNDEFINED:
        return quirks.count_native_frames(file.pixels_bytes, layout.frame_bytes)
    try:
        _, fragments = guard.find_fragments(file.content, file.pixels_at)
    except RejectError:  # raised again when the frames are read
        return 1
    return quirks.count_compressed_frames(
        file.content, fragments, is_rle=file.syntax == uid.RLELossless
    )


_FrameHeader = tuple[Header, SeriesHeader] | RejectError
"""Header of a frame, or why the frame is no slice."""


def _frame_headers(
    file: _File, header: Header, series_header: SeriesHeader, accept: frozenset[str]
) -> list[_FrameHeader]:
    """Headers of each frame, made of its own values, shared ones and those of the file.

    Source:
        DICOM PS3.3 C.7.6.16, multi-frame functional groups.
    """
    num_frames = series_header.layout.num_frames
    own_groups = read_items(file.sequences, _FRAME_GROUPS, file.budget)
    if num_frames == 1 and own_groups is None:
        return [(header, series_header)]
    whole = dict(file.elements)
    if num_frames > 1:  # the file's position is not that of a frame
        whole.pop(TAGS["ImagePositionPatient"], None)
    shared_groups = read_items(file.sequences, _SHARED_GROUPS, file.budget) or ()
    shared = [
        group for item in shared_groups for group in read_groups(item, file.budget)
    ]
    own = [read_groups(item, file.budget) for item in (own_groups or ())[:num_frames]]
    own += [[] for _ in range(num_frames - len(own))]
    merged = [_merged(*frame, *shared, whole) for frame in own]
    return [_frame_header(found, accept) for found in merged]


def _frame_header(elements: Elements, accept: frozenset[str]) -> _FrameHeader:
    try:
        return Header(elements), read_series_header(elements, accept)
    except RejectError as error:
        if error.code not in KIND_CODES:
            raise
        return error


def _rejected_frames(
    frame_headers: Sequence[_FrameHeader],
) -> tuple[tuple[str, str], ...]:
    """Count the frames that are no slices, by code; raise if no other is left."""
    errors = [one for one in frame_headers if isinstance(one, RejectError)]
    if len(errors) == len(frame_headers):
        raise errors[0]
    counts = Counter(error.code for error in errors)
    details = {error.code: error.detail for error in reversed(errors)}
    return tuple(
        (code, f"{count} of {len(frame_headers)} frames: {details[code]}")
        for code, count in counts.items()
    )


def _merged(*mappings: Elements) -> Elements:
    """Merge mappings; the first that has a tag counts."""
    merged: dict[int, tuple[bytes, bool]] = {}
    for mapping in reversed(mappings):
        merged.update(mapping)
    return merged


# ---- pixels ----------------------------------------------------------------------


def _read_frames(file: _File, layout: Layout) -> Iterator[RawArray]:
    """Yield the raw pixels of each frame, shape (H, W), in native byte order."""
    is_compressed = bool(file.syntax) and file.syntax not in _NATIVE_SYNTAXES
    if file.pixels_bytes == UNDEFINED and is_compressed:
        yield from _decode(file, layout)
        return
    if file.pixels_bytes == UNDEFINED:
        raise RejectError("decoder-error", "compressed pixels in a native syntax")
    expected = layout.frame_bytes * layout.num_frames
    if is_compressed:
        _find_decoder(file.syntax)
        if file.pixels_bytes != expected:
            raise RejectError("decoder-error", "native pixels in a compressed syntax")
        file.quirks.add("wrong_syntax")
    elif file.pixels_bytes > expected:
        file.quirks.add("long_pixels")
    found = min(file.pixels_bytes, len(file.content) - file.pixels_at)
    if found < expected:
        raise RejectError("truncated-pixels", f"{found:,} bytes, expected {expected:,}")
    yield from _view(file, layout)


def _view(file: _File, layout: Layout) -> Iterator[RawArray]:
    is_big_endian = file.syntax == uid.ExplicitVRBigEndian
    dtype = _dtype(layout.bits_allocated, layout.is_signed, is_big_endian)
    shape_HW = layout.rows, layout.columns
    for index in range(layout.num_frames):
        start = file.pixels_at + index * layout.frame_bytes
        raw_HW: RawArray = np.ndarray(shape_HW, dtype, file.content, start)
        yield raw_HW.astype(dtype.newbyteorder("=")) if is_big_endian else raw_HW


@lru_cache
def _dtype(bits: int, is_signed: bool, is_big_endian: bool) -> np.dtype[np.integer]:
    order, kind = ">" if is_big_endian else "<", "i" if is_signed else "u"
    return np.dtype(f"{order}{kind}{bits // 8}")


def _decode(file: _File, layout: Layout) -> Iterator[RawArray]:
    decoder = _find_decoder(file.syntax)
    plugin = _find_plugin(decoder)
    if plugin is None:
        needs = ", ".join(decoder.missing_dependencies)
        raise RejectError(
            "no-decoder",
            f"{uid.UID(file.syntax).name} needs one of {needs}; "
            "pip install 'ichfast[decoders]'",
        )
    end, fragments = guard.find_fragments(file.content, file.pixels_at)
    if layout.num_frames > len(fragments):
        raise RejectError(
            "too-large", f"{layout.num_frames} frames in {len(fragments)} fragments"
        )
    pixels = file.content[file.pixels_at : end]
    if quirks.has_damaged_offsets(
        file.content, file.pixels_at, fragments, layout.num_frames
    ):
        pixels = ITEM + bytes(4) + file.content[fragments[0] : end]
        file.quirks.add("offset_table")
    for codestream in generate_frames(pixels, number_of_frames=layout.num_frames):
        if file.syntax != uid.RLELossless:
            codestreams.check(codestream, layout.rows, layout.columns)
        j2k = get_j2k_parameters(codestream)
        if j2k.get("is_signed", layout.is_signed) != layout.is_signed:
            file.quirks.add("j2k_sign")  # pydicom's decoder mends it
    frames = decoder.iter_array(
        pixels,
        raw=True,
        rows=layout.rows,
        columns=layout.columns,
        number_of_frames=layout.num_frames,
        samples_per_pixel=1,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=layout.bits_allocated,
        bits_stored=layout.bits_stored,
        pixel_representation=int(layout.is_signed),
        pixel_keyword="PixelData",
        decoding_plugin=plugin,
    )
    yield from (raw_HW for raw_HW, _ in frames)


def _find_decoder(syntax: str) -> Decoder:
    try:
        return get_decoder(syntax)
    except NotImplementedError:
        name = uid.UID(syntax).name
        if name != syntax:
            raise RejectError("no-decoder", f"{name} is not supported") from None
        is_uid = set(syntax) <= set("0123456789.")  # anything else may be a name
        name = syntax[:64] if is_uid else "that is no UID"
        raise RejectError("no-decoder", f"unknown transfer syntax {name}") from None


def _find_plugin(decoder: Decoder) -> str | None:
    plugins = decoder.available_plugins if decoder.is_available else ()
    return next((name for name in _PLUGINS if name in plugins), None)


def missing_decoders() -> list[str]:
    """Names of the compressed transfer syntaxes that need a decoder to be installed."""
    names = []
    for syntax in uid.AllTransferSyntaxes:
        with suppress(NotImplementedError):  # a syntax of video, or a withdrawn one
            if syntax.is_compressed and _find_plugin(get_decoder(syntax)) is None:
                names.append(syntax.name)
    return names


def _make_slice(
    file: _File,
    layout: Layout,
    frame_header: tuple[Header, SeriesHeader],
    frame: tuple[int, RawArray],
    rejected_frames: tuple[tuple[str, str], ...],
) -> Slice:
    (header, series_header), (number, raw_HW) = frame_header, frame
    lut = _modality_lut(file)
    stored = hounsfield.store_frame(raw_HW, layout, series_header, lut)
    is_single = layout.num_frames == 1
    return Slice(
        stored_HW=stored.stored_HW,
        slice_id=header.text("SOPInstanceUID") + ("" if is_single else f".{number}"),
        series_header=series_header,
        position_mm=read_position(header, series_header.orientation),
        instance_number=header.integer("InstanceNumber", -1) if is_single else number,
        rescale_slope=stored.slope,
        rescale_intercept=stored.intercept,
        transfer_syntax_uid=file.syntax,
        exposure_mas=read_exposure(header),
        rejected_frames=rejected_frames,
        quirks=tuple(
            sorted(file.quirks | header.quirks | series_header.quirks | stored.quirks)
        ),
    )


def _modality_lut(file: _File) -> Callable[[RawArray], RawArray] | None:
    items = read_items(file.sequences, _LUT, file.budget)
    if file.sequences is None or not items:
        return None
    raw_values(items[0], _LUT_TAGS, _MAX_LUT_BYTES)  # checks their length
    return partial(_apply_lut, file.sequences)


def _apply_lut(sequences: Dataset, raw_HW: RawArray) -> RawArray:
    first, limits = sequences[_LUT][0].LUTDescriptor[1], np.iinfo(raw_HW.dtype)
    if not limits.min <= first <= limits.max:
        raise RejectError("decoder-error", "a modality LUT for pixels of another range")
    # pydicom subtracts the first entry in the dtype of the pixels, which would wrap.
    wide = np.int32 if raw_HW.itemsize < 4 else np.int64
    return apply_modality_lut(raw_HW.astype(wide), sequences)
