"""Reading untrusted parquet files in memory that is proportional to their size.

A few KB can claim a billion rows of one value, or a text of megabytes in each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NOT_PARQUET = (pa.ArrowException, OSError, ValueError)
"""Errors that `read_parquet` raises for anything but a valid table."""


def read_parquet(content: pa.Buffer, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, unless its rows or texts are out of proportion to the file.

    Args:
        content: the bytes of the file.
        columns: names of the columns to read; None reads all.

    Returns:
        The columns in the file's order, without metadata.

    Raises:
        ArrowException, OSError, ValueError: not parquet, too large when unpacked,
            with two columns of one name, or with a column of anything but numbers and
            texts, such as lists or bytes.
    """
    schema = pq.read_schema(pa.BufferReader(content))
    schema = pa.schema([f for f in schema if columns is None or f.name in columns])
    if len(set(schema.names)) < len(schema):
        raise ValueError("it has columns of the same name")
    for field in schema:
        # Values of any other type can be long, and repeated for nothing in the file.
        if not (is_text(field.type) or _is_short(field.type)):
            raise ValueError(
                f"the column {field.name} holds {field.type}, expected one number or "
                "text a row"
            )
    # As dictionaries, repeated texts are in memory once until their size is known.
    texts = [f.name for f in schema if is_text(f.type)]
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
    metadata, limit = file.metadata, max_unpacked_bytes(content.size)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    if metadata.num_rows > content.size:
        raise ValueError(f"it claims {metadata.num_rows:,} rows, more than its bytes")
    if sum(group.total_byte_size for group in groups) > limit:
        raise ValueError(f"it would become more than {limit:,} bytes")
    rows = file.read(columns=schema.names)
    if sum(_text_bytes(rows[name]) for name in texts) > limit:
        raise ValueError(f"its texts would become more than {limit:,} bytes")
    return rows.cast(schema)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, or a dictionary of them (pandas' categories)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_short(kind: pa.DataType) -> bool:
    """Whether each value has 8 bytes or less."""
    return pa.types.is_primitive(kind) or pa.types.is_null(kind)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Total length of the texts in a column of dictionaries, bytes."""
    lengths = (
        pc.binary_length(chunk.dictionary.cast(pa.large_string())).take(chunk.indices)
        for chunk in column.chunks
    )
    return sum(pc.sum(each.cast(pa.int64())).as_py() or 0 for each in lengths)


_MAX_EXPANSION = 100
"""Upper limit of unpacked bytes per byte of a file. A store's tables have 6."""

_FREE_BYTES = 2**20
"""Unpacked bytes allowed for any file, because small files compress best."""


def max_unpacked_bytes(num_bytes: int) -> int:
    """Upper limit of the unpacked size of a file with `num_bytes`."""
    return num_bytes * _MAX_EXPANSION + _FREE_BYTES
