"""The C library that packs, unpacks and halves, called with addresses.

The interpreter's lock is released while it works. `setup.py` builds it beside this
file, if there is a C compiler.

Shape letters: H rows, W columns, R bytes of a record.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.errors import StoreError

PORTABLE, VECTOR = 0, 1
"""Plain C, or AVX2 and NEON where the machine has them. The output is the same."""

ERRORS = {
    1: "no record of this shape and size",
    2: "a width that no encoder writes",
    3: "a start is not where the rows before it end",
    4: "the widths do not add up to the payload",
}
"""Errors of a decoder, by their number in `record.h`."""

_ADDRESS, _INT = ctypes.c_void_p, ctypes.c_int
_SHAPE = (ctypes.c_uint32, ctypes.c_uint32)
_RECORD = (_ADDRESS, ctypes.c_size_t)


def library_paths() -> list[Path]:
    """Paths where `setup.py` puts the library, for one version of Python or several."""
    folder = Path(__file__).parent
    return [folder / f"_record{suffix}" for suffix in EXTENSION_SUFFIXES]


class Library:
    """The loaded library. Several threads may call it at once.

    Args:
        path: of the shared library.
        instructions: `PORTABLE` or `VECTOR`.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, path: Path, instructions: int = VECTOR) -> None:
        self._c = ctypes.CDLL(str(path))
        self._instructions = instructions
        self._c.ichfast_vector_instructions.restype = ctypes.c_char_p
        self._c.ichfast_max_record_bytes.argtypes = _SHAPE
        self._c.ichfast_max_record_bytes.restype = ctypes.c_size_t
        self._c.ichfast_pack.argtypes = [_ADDRESS, *_SHAPE, _ADDRESS, _INT]
        self._c.ichfast_unpack.argtypes = [*_RECORD, *_SHAPE, _ADDRESS, _INT]
        addresses = (_ADDRESS, _ADDRESS)
        self._c.ichfast_unpack_halved.argtypes = [*_RECORD, *_SHAPE, *addresses, _INT]
        self._c.ichfast_halve.argtypes = [_ADDRESS, *_SHAPE, _ADDRESS, _INT]
        self._c.ichfast_halve.restype = None

    @property
    def vector_instructions(self) -> str:
        """``AVX2`` or ``NEON``, or nothing where the machine has neither."""
        return str(self._c.ichfast_vector_instructions().decode())

    def pack(self, stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
        """Pack a slice.

        Args:
            stored_HW: shape (H, W), uint16, C order, at most 2**24 pixels.

        Returns:
            A record, shape (R,), uint8. Its checksums are 0.
        """
        rows, columns = stored_HW.shape
        record_R = np.empty(self._c.ichfast_max_record_bytes(rows, columns), np.uint8)
        self._c.ichfast_pack(
            stored_HW.ctypes.data,
            rows,
            columns,
            record_R.ctypes.data,
            self._instructions,
        )
        (record_bytes,) = record_R[8:12].view("<u4")
        return record_R[:record_bytes]

    def unpack(
        self, record_R: npt.NDArray[np.uint8], out_HW: npt.NDArray[np.uint16]
    ) -> None:
        """Unpack a record, whose checksum the caller has compared.

        Args:
            record_R: shape (R,), uint8, C order.
            out_HW: shape (H, W) of the slice, uint16, C order; overwritten.

        Raises:
            StoreError: it is no record of that shape.
        """
        error = self._c.ichfast_unpack(
            record_R.ctypes.data,
            len(record_R),
            *out_HW.shape,
            out_HW.ctypes.data,
            self._instructions,
        )
        if error:
            raise StoreError(ERRORS[error])

    def unpack_halved(
        self,
        record_R: npt.NDArray[np.uint8],
        shape: tuple[int, int],
        out_HW: npt.NDArray[np.uint16],
    ) -> None:
        """Unpack a record and halve rows and columns: means of 2x2, ties to even.

        Args:
            record_R: shape (R,), uint8, C order.
            shape: rows and columns of the slice. An odd side is padded with 0.
            out_HW: shape (ceil(H / 2), ceil(W / 2)), uint16, C order; overwritten.

        Raises:
            StoreError: it is no record of that shape.
        """
        two_rows = np.empty((2, shape[1]), np.uint16)
        error = self._c.ichfast_unpack_halved(
            record_R.ctypes.data,
            len(record_R),
            *shape,
            two_rows.ctypes.data,
            out_HW.ctypes.data,
            self._instructions,
        )
        if error:
            raise StoreError(ERRORS[error])

    def halve(
        self, stored_HW: npt.NDArray[np.uint16], out_HW: npt.NDArray[np.uint16]
    ) -> None:
        """Halve rows and columns: means of 2x2, ties to even.

        Args:
            stored_HW: shape (H, W), uint16, C order. An odd side is padded with 0.
            out_HW: shape (ceil(H / 2), ceil(W / 2)), uint16, C order; overwritten.
        """
        self._c.ichfast_halve(
            stored_HW.ctypes.data,
            *stored_HW.shape,
            out_HW.ctypes.data,
            self._instructions,
        )
