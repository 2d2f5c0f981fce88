"""Which slices a store is to hold, as an expression such as ``kernel != bone``.

1. A comparison is ``column OP value``: ==, !=, <, <=, > and >= with a number, == and !=
   with a word, ``in`` and ``not in`` with a list such as ``(soft, bone)``. Comparisons
   are joined by ``and``, ``or``, ``not`` and parentheses.
2. A comparison with an unknown value is false, whichever operator it has. So
   ``contrast != yes`` leaves out slices of which that is not known, and
   ``not contrast == yes`` keeps them.
3. Words are compared without regard to upper and lower case. One with a space is
   quoted: ``manufacturer == 'United Imaging'``.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ichfast.dicom.acquisition import CLOSED_LISTS
from ichfast.errors import unknown
from ichfast.store.tables import ACQUISITION_COLUMNS

COLUMNS: dict[str, pa.DataType] = {
    **ACQUISITION_COLUMNS,
    **dict.fromkeys(("thickness_mm", "row_spacing_mm", "tilt_deg"), pa.float64()),
    **dict.fromkeys(("rows", "columns", "bits_stored"), pa.int32()),
}
"""Columns that an expression can name, with their types."""

_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

_ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)

_Test = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """An expression that was checked.

    Args:
        text: the expression, in the form that `parse_selection` gives it.
    """

    text: str

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether the store is to hold a slice.

        Args:
            row: the slice's columns of `COLUMNS`, and any others.
        """
        test, _ = _compile(self.text)
        return test(row)

    def describe(self, row: Mapping[str, Any]) -> str:
        """The values of a slice in the columns that the expression names."""
        _, names = _compile(self.text)
        return ", ".join(f"{name} {_shown(row[name])}" for name in names)


def parse_selection(text: str) -> Selection:
    """Check an expression.

    Raises:
        ValueError: it is malformed, or has an unknown column or value.

    Example:
        >>> selection = parse_selection("kernel!=bone and thickness_mm >= 2")
        >>> selection.keeps({"kernel": "soft", "thickness_mm": 5.0})
        True
        >>> selection.keeps({"kernel": None, "thickness_mm": 5.0})
        False
    """
    try:
        return Selection(ast.unparse(_parsed(text)))
    except RecursionError as error:
        raise _malformed(text) from error


@lru_cache
def _compile(text: str) -> tuple[_Test, tuple[str, ...]]:
    """A test of rows, and the columns that it needs, in the order of the text."""
    names: dict[str, None] = {}
    return _test(_parsed(text).body, names), tuple(names)


def _parsed(text: str) -> ast.Expression:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError) as error:
        raise _malformed(text) from error
    _test(tree.body, {})  # checks it
    return tree


def _malformed(text: str) -> ValueError:
    return ValueError(
        f"cannot understand {text!r} in --select; expected comparisons such as "
        '"kernel != bone and thickness_mm >= 2"'
    )


def _test(node: ast.expr, names: dict[str, None]) -> _Test:
    """Make a test of a part of an expression; add the columns it needs to `names`."""
    match node:
        case ast.BoolOp(op=op, values=values):
            tests = [_test(value, names) for value in values]
            joined = all if isinstance(op, ast.And) else any
            return lambda row: joined(test(row) for test in tests)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            test = _test(operand, names)
            return lambda row: not test(row)
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[right]):
            names[name] = None
            return _comparison(name, op, right)
    raise _malformed(ast.unparse(node))


def _comparison(name: str, op: ast.cmpop, right: ast.expr) -> _Test:
    if name not in COLUMNS:
        raise ValueError(unknown("column in --select", name, COLUMNS))
    compare = _OPERATORS.get(type(op))
    is_text = COLUMNS[name] == pa.string()
    is_list = isinstance(op, ast.In | ast.NotIn)
    items = getattr(right, "elts", None)
    if (
        compare is None
        or is_list != (items is not None)
        or (is_text and isinstance(op, _ORDERINGS))
    ):
        raise ValueError(
            f"{name} cannot be compared like this in --select; a "
            f"{'word' if is_text else 'number'} takes ==, != or "
            f"{'' if is_text else '<, <=, > or >=, or '}in with a list such as "
            f"({'a, b' if is_text else '1, 2'})"
        )
    values = [_value(name, item) for item in items or [right]]
    expected = values if is_list else values[0]

    def test(row: Mapping[str, Any]) -> bool:
        found = _known(row[name])
        return found is not None and compare(found, expected)

    return test


def _value(name: str, node: ast.expr) -> str | float:
    """The value that a column is compared with."""
    if COLUMNS[name] != pa.string():
        try:
            number = ast.literal_eval(node)
        except ValueError:
            number = None
        if isinstance(number, int | float) and not isinstance(number, bool):
            return number
        raise ValueError(
            f"{name} is compared with {ast.unparse(node)} in --select, expected a "
            "number"
        )
    match node:
        case ast.Name(id=word) | ast.Constant(value=str(word)):
            closed = CLOSED_LISTS.get(name, ())
            if closed and word.lower() not in (value.lower() for value in closed):
                raise ValueError(unknown(f"{name} in --select", word, closed))
            return word.lower()
    raise ValueError(
        f"{name} is compared with {ast.unparse(node)} in --select, expected a word; "
        "quote one that is no plain word, such as 'Hr40f'"
    )


def _known(value: Any) -> Any:
    """A value as it is compared; None if it is unknown."""
    if isinstance(value, str):
        return value.lower()
    return None if value is None or math.isnan(value) else value


def _shown(value: Any) -> str:
    known = _known(value)
    if known is None:
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)
