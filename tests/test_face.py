"""The public names: they load when first used, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import ichfast
from ichfast.cli.main import cli

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


@pytest.mark.parametrize("name", dir(ichfast))
def test_a_public_name_has_an_example(name: str) -> None:
    documented = getattr(ichfast, name)
    assert ">>> " in (inspect.getdoc(documented) or ""), f"ichfast.{name}"


COMMANDS = """
synth heads --slices 90 --size 64
prepare heads/dicom --labels heads/labels.csv --keep-ids --workers 1
train --arch efficientnet-b0 --size 32 --limit 16 --device cpu --out runs/first \
 --set train.epochs=1 --set model.pretrained=no --set folds.num_folds=2
predict runs/first predictions.parquet --device cpu
"""


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a trained run and its predictions."""
    folder = tmp_path_factory.mktemp("face")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS.strip().splitlines():
            result = CliRunner().invoke(cli, shlex.split(command))
            assert result.exit_code == 0, result.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(
    name: str, store_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    monkeypatch.chdir(store_folder)
    for example in doctest.DocTestFinder().find(module, name):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
