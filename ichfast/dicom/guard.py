"""The bytes of a DICOM file, measured before pydicom and decoders may trust them.

A damaged or hostile file can promise any size: in the length of an element, in a
deflated data set, in a chain of fragments. Readers allocate what they are promised, so
the promises are held to the file here; those of a compressed frame, in
`ichfast.dicom.codestreams`.

What hostile bytes provoke in a library, as a rejection and nothing else.
"""

from __future__ import annotations

import warnings
import zlib
from io import BytesIO
from types import TracebackType

from ichfast.dicom.walker import FLOAT_PIXELS, ITEM, PIXELS, SEQUENCE_END, UNDEFINED
from ichfast.errors import RejectError

_MAX_INFLATED_BYTES = 256 * 2**20
"""zlib holds twice as much while it inflates."""
_MAX_PIECES = 3 * 2**20
"""Twice as many as 4,096 frames need whose headers all say everything. What is made of
them takes 700 MB at most."""
_ITEM_PIECES = 4
"""Of an item: it takes four times the memory of an element, 700 bytes."""
_MAX_FRAGMENTS = 2**17
"""Most fragments of compressed pixels: 32 for each frame."""
_PREAMBLE_BYTES = 128
_ITEMS = (ITEM, b"\xff\xfe\xe0\x00")
"""The head of an item, little- and big-endian."""


def find_start(content: bytes) -> tuple[int, bool]:
    """Where the first element begins, and whether a preamble stands before it.

    Source:
        DICOM PS3.10 7.1. Dumps of network messages and files older than it lack
        the preamble, and begin with an element of group 0002 or 0008.
    """
    if not content:
        raise RejectError("empty", "0 bytes")
    if content[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        return _PREAMBLE_BYTES + 4, True
    if content[:2] in (b"\2\0", b"\x08\0") and content[3:4] == b"\0":
        return 0, False
    raise RejectError(
        "not-dicom", f"{len(content):,} bytes without DICM at byte {_PREAMBLE_BYTES}"
    )


def inflate(packed: bytes) -> bytes:
    """Unpack a deflated data set.

    Raises:
        RejectError: ``too-large``, above 256 MiB.

    Source:
        DICOM PS3.5 A.5.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(packed, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise RejectError(
            "too-large", f"it inflates to more than {_MAX_INFLATED_BYTES:,} bytes"
        )
    return inflated


class Ration:
    """So many pieces as may be read of a file, its sequences included, and no more.

    pydicom reads each element and each item of a sequence in a piece or two of 8 bytes
    and more, and makes an object of it. So a file of nothing but items would take a
    hundred times its size.
    """

    def __init__(self) -> None:
        self._num_left = _MAX_PIECES

    def take(self, num_pieces: int) -> None:
        """Count pieces.

        Raises:
            RejectError: ``bad-header``, all were read before.
        """
        self._num_left -= num_pieces
        if self._num_left < 0:
            raise RejectError(
                "bad-header", f"more than {_MAX_PIECES:,} elements, an item counts as 4"
            )


class Rationed(BytesIO):
    """Bytes whose reading a ration allows."""

    def __init__(self, content: bytes, ration: Ration) -> None:
        super().__init__(content)
        self._ration = ration

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            RejectError: as `Ration.take`.
        """
        piece = super().read(size)
        self._ration.take(_ITEM_PIECES if piece[:4] in _ITEMS else 1)
        return piece


class PixelSearch:
    """Stops pydicom at the pixels, or at an element that leaves the file.

    Give it to pydicom's reader as `stop_when`, then ask `check`.
    """

    def __init__(self, stream: BytesIO, num_bytes: int) -> None:
        self._stream = stream
        self._num_bytes = num_bytes
        self._tag = 0
        self.at = 0
        """Where the value of the pixel data begins."""
        self.length = 0
        """Its bytes as the header says, or `UNDEFINED`."""
        self._is_cut = False

    def __call__(self, tag: int, _vr: str | None, length: int) -> bool:
        """Whether to stop before this element; pydicom stands at its value."""
        at = self._stream.tell()
        if tag == PIXELS or tag in FLOAT_PIXELS:
            self._tag, self.at, self.length = tag, at, length
            return True
        self._is_cut = length != UNDEFINED and at + length > self._num_bytes
        return self._is_cut

    def check(self) -> None:
        """Say whether pixels were found.

        Raises:
            RejectError: ``bad-header``, the file ends before them; ``no-pixels``.
        """
        if self._is_cut:
            raise RejectError(
                "bad-header", f"the file ends inside it, at {self._num_bytes:,} bytes"
            )
        if self._tag != PIXELS or self.length == 0:
            found = "floating point" if self._tag in FLOAT_PIXELS else "no"
            raise RejectError(
                "no-pixels", f"{found} pixels, expected PixelData (7FE0,0010)"
            )


def measure_fragments(content: bytes, start: int) -> tuple[int, int]:
    """Walk over the fragments.

    Args:
        content: the file.
        start: where the first item, the basic offset table, begins.

    Returns:
        Where the last fragment ends, and how many there are.

    Raises:
        RejectError: ``truncated-pixels``, a fragment leaves the file; ``too-large``,
            there are too many; ``decoder-error``, there is no chain of items.

    Source:
        DICOM PS3.5 A.4.
    """
    at, num_items = start, 0
    while content[at : at + 4] == ITEM and at + 8 <= len(content):
        if num_items > _MAX_FRAGMENTS:
            raise RejectError("too-large", f"more than {_MAX_FRAGMENTS:,} fragments")
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")
        if end > len(content):
            raise RejectError(
                "truncated-pixels",
                f"{len(content) - start:,} bytes of at least {end - start:,} expected",
            )
        at, num_items = end, num_items + 1
    if num_items == 0:
        raise RejectError("decoder-error", "the pixels are no chain of fragments")
    if num_items == 1 or content[at : at + 4] not in (SEQUENCE_END, b""):
        raise RejectError(
            "truncated-pixels", f"{num_items - 1} fragments, then no delimiter"
        )
    return at, num_items - 1


class Mistrust:
    """A block in which any failure is the fault of the bytes, and warnings are none.

    Both may quote what the bytes say, so neither gets out. A context manager.

    Args:
        code: of the rejection that a failure becomes.
        part: what is being read.

    Raises:
        RejectError: what was raised in the block, as it was; or `code`, for any other
            failure but Ctrl-C and an exit.
    """

    def __init__(self, code: str, part: str) -> None:
        self._code = code
        self._part = part
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._warnings.__exit__(kind, error, trace)
        # A panic of a decoder in Rust is no Exception.
        passed_on = RejectError, KeyboardInterrupt, SystemExit
        if error is not None and not isinstance(error, passed_on):
            # pydicom takes what it was told while it read an item for an error of its.
            if isinstance(error.__context__, RejectError):
                raise error.__context__ from None
            reason = f"{type(error).__name__} while reading the {self._part}"
            # Without its cause, whose message may quote header values.
            raise RejectError(self._code, reason) from None
