"""Public functions describe their parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ichfast

ROOT = Path(ichfast.__path__[0])
MODULES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if path.parts[len(ROOT.parts)] != "cli"  # click shows the help of its parameters
)


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield the functions and methods without a leading underscore."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node)
        else:
            yield node


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_two_or_more_parameters_are_each_described(module: Path) -> None:
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    missing = [
        f"{function.name}: {name}"
        for function in public_functions(tree)
        if len(names := parameters(function)) > 1
        for name in names
        if f"    {name}: " not in (ast.get_docstring(function) or "")
    ]
    assert missing == []
