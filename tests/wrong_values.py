"""Content of a file as someone might craft it: one value at a time is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

WRONG: dict[str, Any] = {
    "none": None,
    "text": "x",
    "negative": -3,
    "fraction": 0.5,
    "nan": math.nan,
    "truth": True,
    "list": [1, "a"],
    "mapping": {"a": {}},
    "scalar": torch.tensor(3.0),
    "tensor": torch.zeros(2, 3),
    "integers": torch.zeros(7, dtype=torch.int64),
}
"""Values of other kinds than most fields have."""

MISSING = "missing"


def with_wrong_values(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield copies of nested containers in which one value is wrong or missing.

    Args:
        content: mappings, lists and values. Of a list, only the first item changes.
        path: where it is, for the names.

    Yields:
        A name such as ``optimizer.state.0=text``, and the copy.
    """
    if isinstance(content, Mapping):
        keys = list(content)
    elif isinstance(content, list):
        keys = list(range(len(content)))[:1]
    else:
        return
    for key in keys:
        rest = list(content) if isinstance(content, list) else dict(content)
        del rest[key]
        yield f"{path}{key}={MISSING}", rest
        for name, value in WRONG.items():
            yield f"{path}{key}={name}", _with(content, key, value)
        for name, value in with_wrong_values(content[key], f"{path}{key}."):
            yield name, _with(content, key, value)


def _with(content: Any, key: Any, value: Any) -> Any:
    copy = list(content) if isinstance(content, list) else dict(content)
    copy[key] = value
    return copy
