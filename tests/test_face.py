"""The public names: they load when first used, and their examples run."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ichfast

PACKAGES = [
    f"ichfast.{each.name}"
    for each in pkgutil.iter_modules(ichfast.__path__)
    if each.ispkg and each.name not in ("cli", "system")
]
ROOT = Path(ichfast.__path__[0])
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]
"""The modules with examples."""


@pytest.mark.parametrize("name", ["ichfast", *PACKAGES])
def test_a_package_shows_its_public_names(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__all__
    assert dir(package) == package.__all__
    for public in package.__all__:
        module = inspect.getmodule(getattr(package, public))
        # A constant has no module.
        assert module is None or f"{module.__name__}.".startswith(f"{name}.")


def test_importing_ichfast_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import ichfast; "
        "heavy = {'numpy', 'pandas', 'click', 'torch'} & set(sys.modules) - before; "
        "ours = {name for name in sys.modules if name.startswith('ichfast.')}; "
        "sys.exit(f'imported {heavy | ours}' if heavy | ours else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
