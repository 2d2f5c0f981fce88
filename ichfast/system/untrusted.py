"""A parquet file that nobody vouches for, read in memory that fits its size.

A few KB may claim a billion rows of one value, or one text of megabytes in each row.

How much a file that nobody vouches for may become when it is unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

NOT_PARQUET = (pa.ArrowException, OSError, ValueError)
"""What `read_parquet` may raise of bytes that are no such table."""


def read_parquet(content: pa.Buffer, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table whose rows and texts are in proportion to the file.

    Args:
        content: the file.
        columns: to read; None: all.

    Returns:
        The columns, in the file's order, without metadata.

    Raises:
        ArrowException, OSError, ValueError: it is not parquet, claims more than it
            can hold, or holds lists.
    """
    schema = pq.read_schema(pa.BufferReader(content))
    schema = pa.schema([f for f in schema if columns is None or f.name in columns])
    if any(pa.types.is_nested(field.type) for field in schema):
        raise ValueError("a column holds lists, expected one value a row")
    # A text that many rows share is in memory once, until it is known to be short.
    texts = [f.name for f in schema if _is_text(f.type)]
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts)
    metadata, most = file.metadata, most_unpacked(content.size)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    if metadata.num_rows > content.size:
        raise ValueError(f"it claims {metadata.num_rows:,} rows, more than its bytes")
    if sum(group.total_byte_size for group in groups) > most:
        raise ValueError(f"it would become more than {most:,} bytes")
    rows = file.read(columns=schema.names)
    if sum(_text_bytes(rows[name]) for name in texts) > most:
        raise ValueError(f"its texts would become more than {most:,} bytes")
    return rows.cast(schema)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _text_bytes(column: pa.ChunkedArray) -> int:
    """How long the texts of a column of dictionaries are together."""
    lengths = (
        pc.binary_length(chunk.dictionary.cast(pa.large_string())).take(chunk.indices)
        for chunk in column.chunks
    )
    return sum(pc.sum(each.cast(pa.int64())).as_py() or 0 for each in lengths)


_MOST_EXPANSION = 100
"""Bytes that one byte of a file may become. A store's tables become 6."""

_FREE_BYTES = 2**20
"""What any file may become, for small ones repeat themselves most."""


def most_unpacked(num_bytes: int) -> int:
    """Most bytes that a file of so many may become."""
    return num_bytes * _MOST_EXPANSION + _FREE_BYTES
