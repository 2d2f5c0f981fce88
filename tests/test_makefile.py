"""What make installs before it does what it was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.checkout import ROOT

if shutil.which("make") is None:
    pytest.skip("needs make", allow_module_level=True)

DEMO, ALL = "cpu", "bench,cuda12,decoders,docs,nifti,test"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the files that decide, an hour old."""
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
        age(tmp_path / name, hours=1)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def age(path: Path, *, hours: int) -> None:
    path.touch()
    seconds = path.stat().st_mtime - 3600 * hours
    os.utime(path, (seconds, seconds))


def commands(clone: Path, target: str) -> list[str]:
    """What make would run, line by line."""
    command = ["make", "--no-print-directory", "--dry-run", target, "VENV=.venv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=clone)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def installed(clone: Path, target: str) -> list[str]:
    """The extras that make would install, in order."""
    return re.findall(r"pip install.* '\.\[(.*)\]'", "\n".join(commands(clone, target)))


def test_a_new_clone_installs_for_the_demo_what_it_needs_only(clone: Path) -> None:
    assert installed(clone, "demo") == [DEMO]
    lines = commands(clone, "demo")
    assert lines[-1] == ".venv/bin/ichfast demo"
    (size,) = (n for n, line in enumerate(lines) if re.search(r"fetching .* GB", line))
    (first,) = (n for n, line in enumerate(lines) if "pip install" in line)
    assert size < first


@pytest.mark.parametrize(
    "target", ["test", "quick", "check", "bench", "docs", "pictures", "fuzz"]
)
def test_other_targets_add_the_rest(clone: Path, target: str) -> None:
    assert installed(clone, target) == [DEMO, ALL]
    age(clone / ".venv" / ".demo", hours=0)
    assert installed(clone, target) == [ALL]


def test_what_is_installed_is_not_installed_again(clone: Path) -> None:
    for stamp in (".demo", ".all"):
        age(clone / ".venv" / stamp, hours=0)
    assert installed(clone, "demo") == installed(clone, "test") == []


def test_a_changed_setup_installs_again(clone: Path) -> None:
    for stamp in (".demo", ".all"):
        age(clone / ".venv" / stamp, hours=2)
    assert installed(clone, "demo") == [DEMO]
    assert installed(clone, "test") == [DEMO, ALL]


def test_the_extras_are_those_of_the_package() -> None:
    setup = (ROOT / "setup.py").read_text("utf-8")
    for extra in (DEMO, *ALL.split(",")):  # pip only warns about another one
        assert re.search(rf'^ +"{extra}": ', setup, re.MULTILINE), extra
