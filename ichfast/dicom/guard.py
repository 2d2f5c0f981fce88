"""Checks on untrusted bytes of a DICOM file, made before a library reads them.

A damaged file can state any size: in the length of an element, in a deflated data set,
in a chain of fragments. These sizes are compared with the file here, those in a
compressed frame in `ichfast.dicom.codestreams`. `reject_failures` turns what still goes
wrong in a library into a rejection.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from ichfast.dicom.walker import FLOAT_PIXELS, ITEM, PIXELS, SEQUENCE_END, UNDEFINED
from ichfast.errors import RejectError

_MAX_INFLATED_BYTES = 256 * 2**20
"""Upper limit of an inflated data set, bytes. zlib holds twice as much meanwhile."""
_MAX_PIECES = 3 * 2**20
"""Upper limit of pieces read from a file: twice as many as 4,096 frames with all values
in each header need. The objects made of them take 700 MB at most."""
_ITEM_PIECES = 4
"""Pieces that an item counts as: it takes four times the memory of an element, 700
bytes."""
_ITEMS = (ITEM, b"\xff\xfe\xe0\x00")
"""First bytes of an item, little- and big-endian."""
_MAX_FRAGMENTS = 2**17
"""Upper limit of fragments of compressed pixels: 32 for each of 4,096 frames."""
_PREAMBLE_BYTES = 128


def find_start(content: bytes) -> tuple[int, bool]:
    """Find the first element.

    Returns:
        Its offset, and whether a preamble precedes it.

    Raises:
        RejectError: ``empty``, there are no bytes; ``not-dicom``, they are no DICOM.

    Source:
        DICOM PS3.10 7.1. Dumps of network messages and files older than the standard
        lack the preamble, and begin with an element of group 0002 or 0008.
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
        RejectError: ``too-large``, it has more than 256 MiB.

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


class ReadBudget:
    """Limits the pieces that pydicom reads from a file, its sequences included.

    pydicom reads each element and item in one or two pieces of at least 8 bytes, and
    makes an object of each. A file of nothing but items would take a hundred times its
    size. The memory limit of a worker does not replace this: an interpreter without
    memory for small objects can hang or fail in its own error handling.
    """

    def __init__(self) -> None:
        self._num_left = _MAX_PIECES

    def spend(self, num_pieces: int) -> None:
        """Take pieces from the budget.

        Raises:
            RejectError: ``bad-header``, there are not so many left.
        """
        self._num_left -= num_pieces
        if self._num_left < 0:
            raise RejectError(
                "bad-header", f"more than {_MAX_PIECES:,} elements, an item counts as 4"
            )


class BudgetedBytes(BytesIO):
    """A stream whose reads are taken from a budget.

    Args:
        content: the bytes.
        budget: budget of the file.
    """

    def __init__(self, content: bytes, budget: ReadBudget) -> None:
        super().__init__(content)
        self._budget = budget

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes.

        Raises:
            RejectError: ``bad-header``, the budget is spent.
        """
        piece = super().read(size)
        self._budget.spend(_ITEM_PIECES if piece[:4] in _ITEMS else 1)
        return piece


class PixelSearch:
    """Stops pydicom's reader at the pixels, or at an element that exceeds the file.

    Pass it to the reader as `stop_when`, then call `check`.

    Args:
        stream: the bytes that pydicom reads.
        num_bytes: how many there are.
    """

    def __init__(self, stream: BytesIO, num_bytes: int) -> None:
        self._stream = stream
        self._num_bytes = num_bytes
        self._tag = 0
        self.at = 0
        """Offset of the value of the pixel data."""
        self.length = 0
        """Bytes of the pixel data according to the header, or `UNDEFINED`."""
        self._is_cut = False

    def __call__(self, tag: int, _vr: str | None, length: int) -> bool:
        """Whether to stop before this element, whose value is next in the stream."""
        at = self._stream.tell()
        if tag == PIXELS or tag in FLOAT_PIXELS:
            self._tag, self.at, self.length = tag, at, length
            return True
        self._is_cut = length != UNDEFINED and at + length > self._num_bytes
        return self._is_cut

    def check(self) -> None:
        """Raise unless pixels were found.

        Raises:
            RejectError: ``bad-header``, the file ends before the pixels;
                ``no-pixels``, it has none, or none of integers.
        """
        if self._is_cut:
            raise RejectError(
                "bad-header",
                f"the file ends inside its header, at {self._num_bytes:,} bytes",
            )
        if self._tag != PIXELS or self.length == 0:
            found = "floating point" if self._tag in FLOAT_PIXELS else "no"
            raise RejectError(
                "no-pixels", f"{found} pixels, expected PixelData (7FE0,0010)"
            )


def find_fragments(content: bytes, start: int) -> tuple[int, list[int]]:
    """Find the fragments of compressed pixels.

    Args:
        content: the file.
        start: offset of the first item, the basic offset table.

    Returns:
        Offset of the end of the last fragment, and the offset of each one's item.

    Raises:
        RejectError: ``truncated-pixels``, a fragment exceeds the file; ``too-large``,
            there are too many; ``decoder-error``, there is no chain of items.

    Source:
        DICOM PS3.5 A.4.
    """
    at, items = start, list[int]()
    while content[at : at + 4] == ITEM and at + 8 <= len(content):
        if len(items) > _MAX_FRAGMENTS:
            raise RejectError("too-large", f"more than {_MAX_FRAGMENTS:,} fragments")
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")
        if end > len(content):
            raise RejectError(
                "truncated-pixels",
                f"{len(content) - start:,} bytes of at least {end - start:,} expected",
            )
        items.append(at)
        at = end
    if not items:
        raise RejectError("decoder-error", "the pixels are no chain of fragments")
    if len(items) == 1 or content[at : at + 4] not in (SEQUENCE_END, b""):
        raise RejectError(
            "truncated-pixels", f"{len(items) - 1} fragments, then no delimiter"
        )
    return at, items[1:]


@contextmanager
def reject_failures(code: str, part: str) -> Iterator[None]:
    """Turn any failure in the block into a rejection, and silence warnings.

    Messages and warnings may quote patient data, so neither is passed on.

    Args:
        code: reject code for the failure.
        part: what the block reads, for the message.

    Raises:
        RejectError: the one raised in the block; ``too-large``, memory ran out; or
            `code`, for any other exception except those of Ctrl-C and of an exit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (RejectError, KeyboardInterrupt, SystemExit):
            raise
        # A panic of a decoder in Rust is no Exception.
        except BaseException as error:  # noqa: BLE001  raised as a rejection
            # pydicom raises its own error when the budget is spent inside an item.
            if isinstance(error.__context__, RejectError):
                raise error.__context__ from None
            if isinstance(error, MemoryError):
                code = "too-large"
            reason = f"{type(error).__name__} while reading the {part}"
            # Without its cause, whose message may quote header values.
            raise RejectError(code, reason) from None
