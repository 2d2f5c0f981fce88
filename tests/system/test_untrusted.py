"""A small file does not become a large table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ichfast.system.untrusted import read_parquet


def written(table: pa.Table, **options: object) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def many_rows() -> pa.Buffer:
    return written(pa.table({"a": np.zeros(10**6)}))


def long_texts() -> pa.Buffer:
    # The schema is left out, so that what is read is plain text.
    text = pa.array(["x" * 2000] * 1000).dictionary_encode()
    return written(pa.table({"a": text}), store_schema=False)


def long_categories() -> pa.Buffer:
    text = pa.array(["x" * 2000] * 1000).dictionary_encode()
    return written(pa.table({"a": text}))


def long_pages() -> pa.Buffer:
    return written(pa.table({"a": ["x" * 3_000_000]}), compression="zstd")


@pytest.mark.parametrize(
    ("bomb", "problem"),
    [
        (many_rows, "1,000,000 rows, more than its bytes"),
        (long_texts, "its texts would become more than"),
        (long_pages, "it would become more than"),
        (long_categories, "its texts would become more than"),
        (
            lambda: written(pa.table({"a": [[1.0]]})),
            "a holds list<",
        ),
        (lambda: written(pa.table([[1], [2]], ["a", "a"])), "columns of the same name"),
        (lambda: written(pa.table({"a": [b"x" * 2000] * 1000})), "a holds binary"),
    ],
)
def test_what_is_out_of_proportion_is_refused(
    bomb: Callable[[], pa.Buffer], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        read_parquet(bomb())


def test_metadata_of_others_names_no_column() -> None:
    table = pa.table({"a": ["x", None], "b": [1, 2]})
    foreign = table.replace_schema_metadata({"pandas": "{no json"})
    found = read_parquet(written(foreign))
    assert found.equals(table)
    assert found.schema.metadata is None
    assert read_parquet(written(foreign), ["b"]).equals(table.select(["b"]))
