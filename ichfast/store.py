"""The slice store: every slice of a training set as raw uint16, decoded once.

Format 1. A store is a folder:

    store.json           `StoreHeader`; written last, so a folder without it is not
                         a store. Holds no time and no path.
    slices.parquet       one row a slice (`table_schema`), sorted by patient, study,
                         series, position_mm, instance_number, slice_id
    rejected.csv         path, reason (a fixed code), detail
    level-512/00000.npy  (n, rows, columns) uint16, little-endian, C order
    level-256/00000.npy  (n, 256, 256), row for row the same slices

1. The stored number is ``clip(round(HU) + 1024, 0, 32767)``: air is 24, padding
   0, and the same bytes are valid int16.
2. Level 512 is the source resolution, untouched. One unit of work (1,024 entries
   of the listing) makes one shard a shape: ``00000.npy`` holds its 512x512
   slices, ``00000-638x490.npy`` those of 638 rows and 490 columns. The number is
   the unit's.
3. Level 256 is made from level 512 by `reduce_to_256`, under the same shard
   names. So (shard, row_in_shard) finds a slice at every level.
4. The .npy header (version 1.0) is padded to 4,096 bytes: slices of 512x512 start
   on a page, and memory maps, O_DIRECT and GPUDirect read the same file.
5. Rows that no table row points to (dropped duplicates) may be in a shard.
6. ``crc32c`` of a table row covers the slice's bytes at level 512,
   ``crc32c_256`` those at level 256, a shard's the whole file.

This module is the only one that knows these facts.

Shape letters: N slices in the store, B slices asked for, H rows, W columns,
K classes.
"""

from __future__ import annotations

import json
import mmap
import re
import resource
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ichfast.errors import StoreError
from ichfast.files import atomic_path, write_text_atomically
from ichfast.labels import CLASSES
from ichfast.progress import progress
from ichfast.windows import HU_OFFSET

FORMAT_VERSION = 1
SOURCE_LEVEL = 512
"""The level that holds slices as they came, whatever their shape."""

SMALL_LEVEL = 256
"""The level that holds every slice as 256x256."""

NPY_HEADER_BYTES = 4096
PIXEL_DTYPE = np.dtype("<u2")
MAX_PIXELS = 4096 * 4096
"""Largest slice, rows times columns."""

COUNTS = (
    *("entries", "slices", "series", "patients"),
    *("duplicates", "labelled", "labels_without_slice"),
)
"""What a header counts: entries of the listing, what the table holds, slices left
out because the same one stood before, slices with labels, labels of no slice."""

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading JSON that means harm may raise."""

_SHARD_NAME = re.compile(r"([0-9]{5,9})(?:-[0-9]+x[0-9]+)?\.npy", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Slices of one unit that share a shape: one file in each level."""

    name: str
    rows: int
    columns: int
    count: int
    """Slices in it, unmapped ones included."""

    crc32c: Mapping[int, int]
    """Checksum of the whole file, for each level."""

    def shape(self, level: int) -> tuple[int, int, int]:
        """(n, rows, columns) of the file at `level`."""
        if level == SOURCE_LEVEL:
            return self.count, self.rows, self.columns
        return self.count, level, level

    def num_bytes(self, level: int) -> int:
        """The exact size of the file at `level`, bytes."""
        count, rows, columns = self.shape(level)
        return NPY_HEADER_BYTES + count * rows * columns * PIXEL_DTYPE.itemsize

    def to_json(self) -> dict[str, Any]:
        """As it stands in `store.json`."""
        sizes = {str(level): self.num_bytes(level) for level in self.crc32c}
        sums = {str(level): value for level, value in self.crc32c.items()}
        return {**asdict(self), "bytes": sizes, "crc32c": sums}

    @staticmethod
    def from_json(found: Mapping[str, Any], levels: Sequence[int]) -> Shard:
        """Read what `to_json` made, trusting nothing.

        Raises:
            ValueError, LookupError, TypeError: missing, or out of range.
        """
        rows = _integer(found, "rows", 1, MAX_PIXELS)
        columns = _integer(found, "columns", 1, MAX_PIXELS // rows)
        shard = Shard(
            name=str(found["name"]),
            rows=rows,
            columns=columns,
            count=_integer(found, "count", 1, 2**31 - 1),
            crc32c={
                level: _integer(found["crc32c"], str(level), 0, 2**32 - 1)
                for level in levels
            },
        )
        unit = _SHARD_NAME.fullmatch(shard.name)
        if not unit or shard.name != shard_name(int(unit[1]), rows, columns):
            raise ValueError(f"shard name {shard.name!r} does not fit its shape")
        if found["bytes"] != shard.to_json()["bytes"]:
            raise ValueError(f"shard {shard.name} has bytes that do not fit its shape")
        return shard


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreHeader:
    """What `store.json` says."""

    levels: tuple[int, ...]
    """(512, 256) or (512,)."""

    shards: tuple[Shard, ...]
    """Sorted by name; the table's `shard` column counts into it."""

    counts: Mapping[str, int]
    """The numbers named in `COUNTS`."""

    rejected: Mapping[str, int]
    """Rejected files for each code."""

    keep_ids: bool
    """False: patient, study, series and slice ids are keyed hashes."""

    plan: Mapping[str, str]
    """What the store was made from, as digests; see `ichfast.prepare`."""

    versions: Mapping[str, str]
    """Of the packages that wrote it."""

    table_crc32c: int = 0
    """Checksum of `slices.parquet`. Filled in by `finish_store`."""

    hu_offset: int = HU_OFFSET
    """Added to HU when the store was written; subtract it to get HU back."""

    format_version: int = FORMAT_VERSION

    @property
    def num_bytes(self) -> int:
        """Size of all shards at all levels, bytes."""
        return sum(s.num_bytes(level) for s in self.shards for level in self.levels)


class Store:
    """A store opened for reading. Safe to share between threads.

    Shards are mapped when first read and stay mapped until `close`. Each map
    holds an open file, so opening a store of many shards raises this process's
    limit of open files (RLIMIT_NOFILE) as far as the hard limit allows.

    Args:
        path: the store's folder.

    Raises:
        StoreError: no store, an unfinished or damaged one, or another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.levels = self.header.levels
        self.table = _read_table(self.path / "slices.parquet", self.header)
        _check_sizes(self.path, self.header)
        _allow_open_files(len(self.header.shards) * len(self.levels))
        self._shard_N = self.table["shard"].to_numpy()
        self._row_N = self.table["row_in_shard"].to_numpy()
        self._maps: dict[tuple[int, int], _Map] | None = {}

    def __len__(self) -> int:
        return len(self.table)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the shards. Slices given out before stay readable."""
        self._maps = None

    def slice_HW(self, index: int, level: int = SOURCE_LEVEL) -> npt.NDArray[np.uint16]:
        """One slice, memory-mapped: no copy, pages come from the disk when read.

        Args:
            index: store position in [0, N).
            level: one of `levels`.

        Returns:
            Shape (H, W), uint16, HU + `header.hu_offset`, read-only.

        Raises:
            StoreError: `index` or `level` lies outside the store, the shard is
                damaged, or the store is closed.
        """
        stored_NHW, _ = self._map_of(index, level)
        return stored_NHW[self._row_N[index]]

    def advise(self, indices_B: npt.NDArray[np.int64], level: int) -> None:
        """Ask the kernel to read these slices soon; returns at once.

        The same as posix_fadvise(WILLNEED), through the maps. Best effort.

        Args:
            indices_B: store positions in [0, N).
            level: one of `levels`.

        Raises:
            StoreError: as `slice_HW`.
        """
        for index in indices_B:
            stored_NHW, mapped = self._map_of(index, level)
            num_bytes = stored_NHW[0].nbytes
            start = NPY_HEADER_BYTES + int(self._row_N[index]) * num_bytes
            page = start - start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, page, start + num_bytes - page)

    def labels_NK(self) -> npt.NDArray[np.float32]:
        """The labels, shape (N, 6), float32, `CLASSES` order, NaN where unlabelled."""
        return self.table[list(CLASSES)].to_numpy(np.float32, na_value=np.nan)

    def _map_of(self, index: int, level: int) -> _Map:
        if self._maps is None:
            raise StoreError(f"{self.path} was closed; open it again")
        if not 0 <= index < len(self._shard_N):
            raise StoreError(
                f"{self.path} holds slices 0 to {len(self) - 1}, asked for {index}"
            )
        key = (level, self._shard_N[index])
        found = self._maps.get(key)
        if found is None:
            # Two threads may both map it; one map is kept, the other let go.
            shard = self.header.shards[key[1]]
            found = self._maps.setdefault(key, _map_shard(self.path, shard, level))
        return found


class UnitWriter:
    """Writes the shards of one unit: all of them complete, or none of the files.

    Use it as a context manager. Slices go straight to the file, so memory does
    not grow; leaving the block writes the .npy headers, flushes to the disk and
    renames.

    Args:
        path: the store's folder.
        unit: the unit's number.
        levels: (512, 256) or (512,).
    """

    def __init__(self, path: Path, unit: int, levels: Sequence[int]) -> None:
        self._path = path
        self._unit = unit
        self._levels = levels
        self._stack = ExitStack()
        self._files: dict[tuple[int, int], dict[int, _ShardFile]] = {}
        for level in levels:
            (path / f"level-{level}").mkdir(exist_ok=True)

    def add(self, stored_HW: npt.NDArray[np.uint16]) -> tuple[str, int, dict[int, int]]:
        """Append one slice.

        Args:
            stored_HW: shape (H, W), uint16, HU + `HU_OFFSET`. Not changed.

        Returns:
            Its shard's name, its row in the shard, and its checksum at each level.
        """
        rows, columns = stored_HW.shape
        name = shard_name(self._unit, rows, columns)
        if (rows, columns) not in self._files:
            self._files[rows, columns] = {
                level: _ShardFile(
                    self._stack.enter_context(
                        atomic_path(self._path / f"level-{level}" / name)
                    )
                )
                for level in self._levels
            }
        files = self._files[rows, columns]
        row = files[SOURCE_LEVEL].count
        sums = {SOURCE_LEVEL: files[SOURCE_LEVEL].append(stored_HW)}
        if SMALL_LEVEL in files:
            sums[SMALL_LEVEL] = files[SMALL_LEVEL].append(reduce_to_256(stored_HW))
        return name, row, sums

    @property
    def shards(self) -> list[Shard]:
        """What has been added so far, by name."""
        shards = [
            Shard(
                name=shard_name(self._unit, rows, columns),
                rows=rows,
                columns=columns,
                count=files[SOURCE_LEVEL].count,
                crc32c={level: file.crc32c() for level, file in files.items()},
            )
            for (rows, columns), files in self._files.items()
        ]
        return sorted(shards, key=lambda shard: shard.name)

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            for files in self._files.values():
                for file in files.values():
                    file.write_header()


class _ShardFile:
    """One .npy file growing slice by slice; the header comes last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape_HW: tuple[int, ...] = ()
        self._crc32c_of_rows = 0
        self.count = 0
        path.write_bytes(bytes(NPY_HEADER_BYTES))

    def append(self, stored_HW: npt.NDArray[np.uint16]) -> int:
        row = np.ascontiguousarray(stored_HW, dtype=PIXEL_DTYPE)
        # Opened for each slice: a unit may hold hundreds of shapes, and opening
        # costs a hundredth of what writing half a megabyte does.
        with self._path.open("ab") as file:
            file.write(row.data)
        crc32c = int(google_crc32c.value(row))
        self._crc32c_of_rows = _joined(self._crc32c_of_rows, crc32c, row.nbytes)
        self._shape_HW = row.shape
        self.count += 1
        return crc32c

    def crc32c(self) -> int:
        """Checksum of header and slices together."""
        num_bytes = self.count * int(np.prod(self._shape_HW)) * PIXEL_DTYPE.itemsize
        header = google_crc32c.value(self._header())
        return _joined(header, self._crc32c_of_rows, num_bytes)

    def write_header(self) -> None:
        with self._path.open("r+b") as file:
            file.write(self._header())

    def _header(self) -> bytes:
        return _npy_header((self.count, *self._shape_HW))


def finish_store(
    path: Path, header: StoreHeader, table: pd.DataFrame, rejected: pd.DataFrame
) -> StoreHeader:
    """Write what makes a folder of shards a store; `store.json` comes last.

    Args:
        path: the store's folder, with the shards of `header` in it.
        header: everything but `table_crc32c`.
        table: has the columns of `table_schema`, sorted, one row a slice.
        rejected: see `write_rejected`.

    Returns:
        The header as written.
    """
    rows = pa.Table.from_pandas(
        table, schema=table_schema(header.levels), preserve_index=False
    ).replace_schema_metadata(None)
    with atomic_path(path / "slices.parquet") as temporary:
        pq.write_table(rows, temporary)
    write_rejected(path, rejected)
    checksum = google_crc32c.value((path / "slices.parquet").read_bytes())
    header = replace(header, table_crc32c=int(checksum))
    document = {**asdict(header), "shards": [s.to_json() for s in header.shards]}
    write_text_atomically(path / "store.json", json.dumps(document, indent=1) + "\n")
    return header


def write_rejected(path: Path, rejected: pd.DataFrame) -> None:
    """Write `rejected.csv`, from columns of these names: path, reason, detail."""
    with atomic_path(path / "rejected.csv") as temporary:
        rejected.to_csv(
            temporary, index=False, columns=["path", "reason", "detail"], mode="w"
        )


def table_schema(levels: Sequence[int]) -> pa.Schema:
    """Columns and types of `slices.parquet`, in order.

    Empty strings, NaN and -1 (instance_number) mean that the file did not say.
    `tilt_deg` is the rotation of the slice about the patient's left-right axis,
    0 where the gantry stood upright. Labels are 0, 1 or null.
    """
    of_type = {
        pa.string(): ("slice_id", "patient", "study", "series"),
        pa.float64(): ("position_mm",),
    }
    fields = [(name, kind) for kind, names in of_type.items() for name in names]
    fields += [("rows", pa.int32()), ("columns", pa.int32())]
    fields += [
        (name, pa.float64())
        for name in ("row_spacing_mm", "column_spacing_mm", "thickness_mm")
    ]
    fields += [
        ("instance_number", pa.int64()),
        ("tilt_deg", pa.float64()),
        ("shard", pa.int32()),
        ("row_in_shard", pa.int32()),
        ("crc32c", pa.int64()),
    ]
    if SMALL_LEVEL in levels:
        fields.append(("crc32c_256", pa.int64()))
    fields += [
        ("rescale_slope", pa.float64()),
        ("rescale_intercept", pa.float64()),
        ("bits_stored", pa.int32()),
        ("is_signed", pa.bool_()),
        ("window_center", pa.float64()),
        ("window_width", pa.float64()),
        ("transfer_syntax_uid", pa.string()),
        ("quirks", pa.string()),
    ]
    return pa.schema(fields + [(name, pa.int8()) for name in CLASSES])


def shard_name(unit: int, rows: int, columns: int) -> str:
    """The file name of a unit's slices of one shape, the same at every level."""
    shape = "" if rows == columns == SOURCE_LEVEL else f"-{rows}x{columns}"
    return f"{unit:05d}{shape}.npy"


def reduce_to_256(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Make the level-256 form of a slice: area filter, aspect kept, air around.

    Each new pixel is the mean of the source area it covers, halves rounded up;
    at 512x512 that is the exact mean of 2x2 pixels. The same filter enlarges
    slices smaller than 256, which repeats their pixels and invents nothing. The
    longer side becomes 256; the rest, split evenly, is filled with 0.

    Args:
        stored_HW: shape (H, W), uint16 up to 32,767. Not changed.

    Returns:
        Shape (256, 256), uint16.
    """
    rows, columns = stored_HW.shape
    if rows == columns == SOURCE_LEVEL:
        return _mean_of_2x2(stored_HW)
    longer = max(rows, columns)
    new_rows = max(1, round(rows * SMALL_LEVEL / longer))
    new_columns = max(1, round(columns * SMALL_LEVEL / longer))
    mean_HW = _area_filter_rows(stored_HW.astype(np.float64), new_rows)
    mean_HW = _area_filter_rows(mean_HW.T, new_columns).T
    top, left = (SMALL_LEVEL - new_rows) // 2, (SMALL_LEVEL - new_columns) // 2
    out_HW = np.zeros((SMALL_LEVEL, SMALL_LEVEL), dtype=np.uint16)
    out_HW[top : top + new_rows, left : left + new_columns] = np.floor(mean_HW + 0.5)
    return out_HW


def _mean_of_2x2(stored_HW: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    # Two numbers up to 32,767 fit in a uint16; two neighbours are one uint32.
    pairs_HW = (stored_HW[0::2] + stored_HW[1::2]).view(np.uint32)
    sum_HW = (pairs_HW & 0xFFFF) + (pairs_HW >> 16)
    return ((sum_HW + 2) >> 2).astype(np.uint16)


def _area_filter_rows(
    values_HW: npt.NDArray[np.float64], num_rows: int
) -> npt.NDArray[np.float64]:
    """Means over `num_rows` equal bands of rows: differences of the running sum."""
    rows = len(values_HW)
    sums_HW = np.zeros((rows + 1, values_HW.shape[1]))
    np.cumsum(values_HW, axis=0, out=sums_HW[1:])
    edges = np.arange(num_rows + 1) * rows / num_rows
    whole = np.minimum(edges.astype(np.int64), rows - 1)
    part = (edges - whole)[:, np.newaxis]
    return np.diff(sums_HW[whole] + part * values_HW[whole], axis=0) * num_rows / rows


def verify_store(path: str | Path) -> list[str]:
    """Read every byte of a store and compare it with its checksums.

    Returns:
        The problems found, each naming the file and, where it is one, the slice.
        Empty: the store is as it was written.
    """
    problems: list[str] = []
    try:
        with Store(path) as store:
            total = sum(s.count for s in store.header.shards) * len(store.levels)
            with progress("verify", total, "slice") as bar:
                for number, shard in enumerate(store.header.shards):
                    for level in store.levels:
                        problems += _shard_problems(store, number, level)
                        bar.update(shard.count)
    except StoreError as error:
        problems.append(str(error))
    return problems


def _shard_problems(store: Store, number: int, level: int) -> list[str]:
    shard = store.header.shards[number]
    file = store.path / f"level-{level}" / shard.name
    try:
        stored_NHW, _ = _map_shard(store.path, shard, level)
    except StoreError as error:
        return [str(error)]
    whole = int(google_crc32c.value(_npy_header(shard.shape(level))))
    found_N = np.zeros(shard.count, dtype=np.int64)
    for row, stored_HW in enumerate(stored_NHW):
        found_N[row] = google_crc32c.value(stored_HW)
        whole = _joined(whole, int(found_N[row]), stored_HW.nbytes)
    column = "crc32c" if level == SOURCE_LEVEL else f"crc32c_{level}"
    mine = store.table[store.table["shard"] == number]
    bad = mine[mine[column].to_numpy() != found_N[mine["row_in_shard"].to_numpy()]]
    problems = [
        f"{file}: slice {slice_id} (row {row}) does not match its checksum"
        for slice_id, row in zip(bad["slice_id"], bad["row_in_shard"], strict=True)
    ]
    if whole != shard.crc32c[level] and not problems:
        problems.append(f"{file}: a row without a slice does not match its checksum")
    return problems


_Map = tuple[npt.NDArray[np.uint16], mmap.mmap]


def _map_shard(path: Path, shard: Shard, level: int) -> _Map:
    file_path = path / f"level-{level}" / shard.name
    if level not in shard.crc32c:
        raise StoreError(
            f"{path} has the levels {', '.join(map(str, shard.crc32c))}, asked for "
            f"{level}; prepare a store with --levels 512,{SMALL_LEVEL} or read 512"
        )
    try:
        with file_path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StoreError(
            f"cannot map {file_path}: {error.strerror}; if too many files are open, "
            "raise the limit (`ulimit -n`)"
        ) from error
    shape = shard.shape(level)
    if mapped[:NPY_HEADER_BYTES] != _npy_header(shape):
        raise StoreError(
            f"{file_path} is damaged: its header is not that of uint16 {shape}; "
            "delete the store and run `ichfast prepare` again"
        )
    flat = np.frombuffer(mapped, dtype=PIXEL_DTYPE, offset=NPY_HEADER_BYTES)
    return flat.reshape(shape), mapped


def _allow_open_files(num_maps: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_maps + 1024
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY, hard) and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The first 4,096 bytes of a shard; numpy's format 1.0, padded with spaces.

    Source:
        numpy.lib.format: magic, version, uint16 length, a literal, newline.
    """
    fields = f"{{'descr': '{PIXEL_DTYPE.str}', 'fortran_order': False, "
    literal = f"{fields}'shape': {shape}, }}".encode("latin-1")
    length = NPY_HEADER_BYTES - 10
    magic = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little")
    return magic + literal.ljust(length - 1) + b"\n"


def _joined(first: int, second: int, num_bytes: int) -> int:
    """CRC-32C of A + B from those of A and of B, where B has `num_bytes`.

    Source:
        zlib's crc32_combine, with the polynomial of RFC 3720 (iSCSI).
    """
    return _times(_power_of_x(8 * num_bytes), first) ^ second


@lru_cache(maxsize=256)
def _power_of_x(exponent: int) -> int:
    result, factor = 1 << 31, 1 << 30
    while exponent:
        if exponent & 1:
            result = _times(result, factor)
        factor = _times(factor, factor)
        exponent >>= 1
    return result


def _times(a: int, b: int) -> int:
    """Product modulo the polynomial; bit 31 is the coefficient of x^0."""
    product = 0
    while a:
        if a & 0x80000000:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (0x82F63B78 if b & 1 else 0)
    return product


def read_header(path: Path) -> StoreHeader:
    """Read and check the `store.json` of the store at `path`.

    Raises:
        StoreError: no store, an unfinished or damaged one, or another version.
    """
    file = path / "store.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        version = _integer(document, "format_version", 1, 2**31)
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path} has format version {version}, this ichfast reads "
                f"{FORMAT_VERSION}; run `ichfast prepare` again into another store"
            )
        return _header_from_json(document)
    except OSError as error:
        if (path / "journal").is_dir():
            raise StoreError(
                f"{path} is unfinished; run the same `ichfast prepare` again, "
                "it continues where it stopped"
            ) from error
        raise StoreError(
            f"{path} is not a slice store (no readable store.json); make one with "
            f"`ichfast prepare SOURCE --store {path}`"
        ) from error
    except _MALFORMED as error:
        raise StoreError(
            f"{file} is damaged ({type(error).__name__}: {error}); delete the store "
            "and run `ichfast prepare` again"
        ) from error


def _header_from_json(found: Mapping[str, Any]) -> StoreHeader:
    levels = tuple(found["levels"])
    check_levels(levels)
    shards = tuple(Shard.from_json(shard, levels) for shard in found["shards"])
    names = [shard.name for shard in shards]
    if not names or names != sorted(set(names)):
        raise ValueError("shards are missing, repeated or out of order")
    if type(found["keep_ids"]) is not bool:
        raise ValueError(f"keep_ids is {found['keep_ids']!r}, expected true or false")
    header = StoreHeader(
        levels=levels,
        shards=shards,
        counts={name: _integer(found["counts"], name, 0, 2**53) for name in COUNTS},
        rejected={
            str(code): _integer(found["rejected"], code, 0, 2**53)
            for code in found["rejected"]
        },
        keep_ids=found["keep_ids"],
        plan={str(name): str(value) for name, value in found["plan"].items()},
        versions={str(name): str(v) for name, v in found["versions"].items()},
        table_crc32c=_integer(found, "table_crc32c", 0, 2**32 - 1),
        hu_offset=_integer(found, "hu_offset", HU_OFFSET, HU_OFFSET),
    )
    _integer(header.counts, "slices", 1, sum(shard.count for shard in shards))
    return header


def check_levels(levels: Sequence[int]) -> None:
    """Refuse levels that format 1 does not have.

    Raises:
        ValueError: neither (512, 256) nor (512,).
    """
    if tuple(levels) not in ((SOURCE_LEVEL, SMALL_LEVEL), (SOURCE_LEVEL,)):
        raise ValueError(f"levels are 512,256 or 512 alone, got {list(levels)}")


def _integer(found: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = found[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(
            f"{name} is {value!r}, expected an integer from {low} to {high}"
        )
    return value


def _read_table(path: Path, header: StoreHeader) -> pd.DataFrame:
    advice = "delete the store and run `ichfast prepare` again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; {advice}") from error
    if google_crc32c.value(content) != header.table_crc32c:
        raise StoreError(f"{path} does not match its checksum; {advice}")
    try:
        rows = pq.read_table(pa.BufferReader(content))
    except pa.ArrowException as error:
        raise StoreError(f"{path} is not a parquet table; {advice}") from error
    if not rows.schema.equals(table_schema(header.levels)):
        raise StoreError(f"{path} has other columns than format 1; {advice}")
    table: pd.DataFrame = rows.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get)
    counts_S = np.array([shard.count for shard in header.shards])
    shard_N, row_N = table["shard"].to_numpy(), table["row_in_shard"].to_numpy()
    if (
        len(table) != header.counts["slices"]
        or not ((shard_N >= 0) & (shard_N < len(counts_S))).all()
        or not ((row_N >= 0) & (row_N < counts_S[shard_N])).all()
    ):
        raise StoreError(f"{path} points outside the store's shards; {advice}")
    return table


def _check_sizes(path: Path, header: StoreHeader) -> None:
    for level in header.levels:
        for shard in header.shards:
            file = path / f"level-{level}" / shard.name
            found = file.stat().st_size if file.is_file() else 0
            if found != shard.num_bytes(level):
                raise StoreError(
                    f"{file} has {found:,} bytes, store.json promises "
                    f"{shard.num_bytes(level):,}; copy it again, or delete the store "
                    "and run `ichfast prepare` again"
                )
