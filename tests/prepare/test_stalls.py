"""A source that does not answer costs its files, or ends the run with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from ichfast.cli.main import cli
from ichfast.errors import SourceError
from ichfast.prepare.prepare import prepare_store
from ichfast.store.verify import verify_store
from ichfast.system.timeouts import limit_stalls, stall_limit
from tests.sources.blocking_files import blocking_folder, leased_file

pytestmark = pytest.mark.slow

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


@pytest.fixture(autouse=True)
def _short_limit() -> Iterator[None]:
    before = stall_limit()
    limit_stalls(0.5)
    yield
    limit_stalls(before)


def test_a_file_that_blocks_is_rejected_and_the_run_goes_on(
    source: Path, tmp_path: Path
) -> None:
    with leased_file(source / "004.dcm"):
        report = run([source], tmp_path / "store", workers=2, max_rejected="1")
    assert (report.slices, report.rejected) == (22, {"timeout": 1})
    table = pd.read_csv(tmp_path / "store" / "rejected.csv")
    assert table.iloc[0].to_list() == ["004.dcm", "timeout", "no answer for 0 s"]
    assert verify_store(tmp_path / "store") == []


MAIN = """
import sys
from pathlib import Path
from ichfast.errors import IchfastError
from ichfast.prepare import convert
from ichfast.prepare.prepare import prepare_store
from ichfast.system.timeouts import limit_stalls
limit_stalls(0.5)
try:
    report = prepare_store([Path(sys.argv[1])], Path(sys.argv[2]), labels=None,
                           workers=2, keep_ids=True, max_rejected="2")
    print(report.slices, report.rejected)
except IchfastError as error:
    sys.exit(str(error))
"""


def run_elsewhere(source: Path, store: Path) -> subprocess.CompletedProcess[str]:
    """A whole process that prepares, which must end although its workers do not."""
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", MAIN, str(source), str(store)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_run_ends_although_the_kernel_does_not_let_its_worker_end(
    source: Path, tmp_path: Path
) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    files |= {"blocked-read.dcm": b"x", "blocked-open.dcm": b"x"}
    with blocking_folder(mount, files):
        ended = run_elsewhere(mount, tmp_path / "store")
    assert ended.stdout == "23 {'timeout': 2}\n", ended.stderr
    assert verify_store(tmp_path / "store") == []


def test_a_run_ends_although_a_folder_of_the_source_does_not_answer(
    tmp_path: Path,
) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with blocking_folder(mount, {"blocked-list": b""}):
        ended = run_elsewhere(mount, tmp_path / "store")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"cannot read {mount / 'blocked-list'}: no answer ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_labels_that_do_not_answer_are_one_line(source: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["prepare", str(source), "--store", str(tmp_path / "store")]
    for name in ("blocked-read.csv", "blocked-stat.csv"):
        with blocking_folder(mount, {name: b"ID,Label"}):
            ended = CliRunner().invoke(cli, [*command, "--labels", str(mount / name)])
        assert ended.exit_code == 1
        assert ended.stderr == (
            f"Error: cannot read {mount / name}: no answer for 0 s; check the disk or "
            "the server that it is on\n"
        )


def test_a_source_that_answers_no_more_ends_the_run_and_the_rest_follows(
    source: Path, tmp_path: Path
) -> None:
    mount, store = tmp_path / "mount", tmp_path / "store"
    mount.mkdir()
    files = {
        f"{number:03d}-blocked-read.dcm": path.read_bytes()
        for number, path in enumerate(sorted(source.iterdir())[:10])
    }
    with blocking_folder(mount, files), pytest.raises(SourceError) as raised:
        run([mount], store)
    assert str(raised.value) == (
        "10 files in a row give nothing for 0 s, the last is 009-blocked-read.dcm; "
        "check the disk or the server that they are on, then the same command "
        "continues"
    )
    for name, content in files.items():
        (mount / name).write_bytes(content)
    assert run([mount], store).slices == 10
