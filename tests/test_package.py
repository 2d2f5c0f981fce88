"""The package as others get it: an sdist, the wheel of it, and what is in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ichfast
from tests.checkout import ROOT, copy_tracked_files, tracked_files

pytestmark = pytest.mark.slow

PIP = ("-m", "pip", "--disable-pip-version-check")
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}


def run(*arguments: str | Path, folder: Path, path: Path | None = None) -> str:
    """Run this Python in a folder; returns what it prints.

    Args:
        *arguments: its command line.
        folder: the working directory.
        path: searched for packages before this environment.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, **OFFLINE, "PYTHONPATH": str(path or "")},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of the tracked files."""
    folder = tmp_path_factory.mktemp("sdist")
    copy_tracked_files(folder / "tree")
    build = "import setuptools.build_meta as backend; backend.build_sdist('../dist')"
    run("-c", build, folder=folder / "tree")
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel of the sdist."""
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", "wheel")
    run(*PIP, "wheel", *options, sdist, folder=sdist.parent)
    (path,) = (sdist.parent / "wheel").iterdir()
    return path


def files_of_package() -> set[str]:
    return {name for name in tracked_files() if name.startswith("ichfast/")}


def test_the_sdist_has_what_a_wheel_is_built_from(sdist: Path) -> None:
    root = f"ichfast-{ichfast.__version__}"
    assert sdist.name == f"{root}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {each.name for each in archive if each.isfile()}
    found = {name.removeprefix(f"{root}/") for name in names}
    generated = {name for name in found if ".egg-info/" in name}
    assert found - generated - {"PKG-INFO", "setup.cfg"} == files_of_package() | {
        *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md"),
        *("pyproject.toml", "setup.py"),
    }


def test_the_wheel_has_the_package_and_its_library_and_nothing_else(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    libraries = {name for name in names if name.endswith(".so")}
    assert names - libraries == files_of_package()
    has_compiler = shutil.which("cc") is not None
    assert [name.split(".")[0] for name in libraries] == (
        ["ichfast/packed/_record"] if has_compiler else []
    )


def test_the_wheel_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    run(*PIP, "install", "--no-deps", "--target", installed, wheel, folder=tmp_path)
    shutil.copy(ROOT / "tests" / "smoke.py", tmp_path)
    printed = run(tmp_path / "smoke.py", folder=empty, path=installed)
    assert printed.splitlines()[-1].startswith(
        f"passed: ichfast {ichfast.__version__} in {installed / 'ichfast'}, "
    )
