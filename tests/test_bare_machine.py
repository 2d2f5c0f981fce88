"""The checkout on a GPU machine without a network, with the packages that it has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.checkout import ROOT, copy_tracked_files

MACHINE = (
    *("cupy-cuda12x", "cupy-cuda13x", "numpy", "onnxruntime", "pandas", "pip"),
    *("pyarrow", "pytest", "pytest-xdist", "scikit-learn", "setuptools"),
    *("tensorboard", "timm", "torch", "torchvision"),
)
"""What such a machine has, with its dependencies (bench/README.md)."""

KIT = (
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130", "astunparse", "gast"),
    *("google-crc32c", "libcst", "makefun", "nvtx", "optree", "packaging"),
    *("pydicom", "six"),
)
"""What is carried there, without dependencies: DALI, its own, and two of ichfast's."""

EXTRAS = (
    *("lazy-loader", "matplotlib"),
    *("contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing"),
)
"""What is carried there if the machine lacks it, without dependencies: the rest of
ichfast's, and what matplotlib needs (bench/README.md)."""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


INSTALLED = {normalized(each.metadata["Name"]): each for each in distributions()}


def with_dependencies(names: Sequence[str], found: set[str]) -> set[str]:
    """Add packages that are installed here, and all they need, to `found`."""
    for name in names:
        if name in INSTALLED and name not in found:
            found.add(name)
            needs = map(Requirement, INSTALLED[name].requires or ())
            with_dependencies(
                [
                    normalized(need.name)
                    for need in needs
                    if need.marker is None or need.marker.evaluate({"extra": ""})
                ],
                found,
            )
    return found


def top_level(package: Distribution) -> Iterator[tuple[Path, Path]]:
    """Yield the files and folders that a package installs, as names and as paths."""
    for file in package.files or ():
        # Several packages share the folder nvidia.
        depth = 2 if file.parts[0] == "nvidia" else 1
        name = Path(*file.parts[:depth])
        if name.parts[0] not in ("..", "__pycache__") and name.suffix != ".pth":
            yield name, Path(str(package.locate_file(name)))


class BareMachine:
    """A tree of the tracked files, and a Python that sees the listed packages only."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self._home = folder / "home"
        self._home.mkdir()
        copy_tracked_files(self.tree)
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (packages_dir,) = (folder / "venv" / "lib").glob("python3*/site-packages")
        carried = {name for name in (*KIT, *EXTRAS) if name in INSTALLED}
        for name in with_dependencies(MACHINE, carried):
            for path, source in top_level(INSTALLED[name]):
                link = packages_dir / path
                link.parent.mkdir(exist_ok=True)
                if not link.exists():
                    link.symlink_to(source)

    def run(self, *arguments: str) -> str:
        """Run its Python in the tree; returns what it prints."""
        done = subprocess.run(
            [self.python, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.tree,
            env={
                "HOME": str(self._home),
                "PATH": "/usr/bin:/bin",
                "PIP_CONFIG_FILE": "/dev/null",
                "PIP_NO_INDEX": "1",
            },
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> BareMachine:
    """The machine after the command of bench/README.md that installs ichfast."""
    made = BareMachine(tmp_path_factory.mktemp("machine"))
    install = "-m pip install -q --no-deps --no-build-isolation -e ."
    assert f"python3 {install}" in (ROOT / "bench" / "README.md").read_text()
    made.run(*install.split())
    return made


@pytest.mark.slow
def test_the_gpu_tests_are_collected(machine: BareMachine) -> None:
    printed = machine.run(
        *("-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q"),
        *("-m", "gpu", "tests/gpu"),
    )
    assert re.search(r"^[1-9]\d*(/\d+)? tests collected", printed, re.MULTILINE), (
        printed
    )


@pytest.mark.slow
def test_the_measurements_are_imported(machine: BareMachine) -> None:
    modules = ["harness.session", "stages.loader", "stages.packed", "stages.train"]
    modules.append("peers.grid_sample")
    machine.run("-c", "".join(f"import bench.{module}\n" for module in modules))


@pytest.mark.slow
def test_the_commands_are_imported_from_the_tree(machine: BareMachine) -> None:
    assert "train" in machine.run("-m", "ichfast", "--help")
    imported = "import ichfast; print(ichfast.__file__)"
    assert Path(machine.run("-c", imported).strip()).is_relative_to(machine.tree)


def test_a_tree_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "ichfast").mkdir()
    shutil.copy(ROOT / "ichfast" / "__init__.py", tmp_path / "ichfast")
    (tmp_path / "lazy_loader.py").touch()
    command = [sys.executable, "-S", "-c", "import ichfast"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={})
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: ichfast is not installed: run `python3 -m pip install -e .`"
    )
