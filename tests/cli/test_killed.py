"""kill -9 of a command leaves nothing half written, and the next run cleans up.

Each command is killed at ten moments, one run after another: at events spread over its
work on files (`tests.cli.forked`), and twice in the middle of writing.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from ichfast.runs.record import RECORD
from ichfast.system.checksums import SUFFIX, read_with_checksum
from ichfast.system.locks import LOCK_FILE
from tests.cli.conftest import COMMANDS, CPU, Place
from tests.cli.test_full_disk import OLDER, ONE_FORM
from tests.conftest import contents
from tests.predict.many_patients import write_patients
from tests.runs.trainedruns import write_run

NUM_EVENTS = 8
"""Events before which a command is killed."""

NUM_KILLS = 10
"""Events before which a command is killed that goes on."""


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Make the folder hold these files, and no others."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def is_final(name: str) -> bool:
    """Whether a file has no temporary name."""
    return not (name.startswith(".") and name.endswith(".tmp"))


def check_whole(out: Path, expected: dict[str, bytes]) -> None:
    """Every file with a final name is the older or the expected one."""
    for path in filter(lambda path: is_final(path.name), out.iterdir()):
        if path.suffix == SUFFIX:
            assert read_with_checksum(path.with_suffix(""))
        else:
            assert path.read_bytes() in (OLDER, expected[path.name]), path.name


GOING_ON = {
    "p.parquet": (*COMMANDS["p.parquet"], "--tta", "flips", "--batch-size", "4"),
    "features": ("features", "run", "out/features", "--batch-size", "8", *CPU),
}
"""Commands that keep what they have computed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", GOING_ON)
def test_a_killed_command_goes_on_where_it_was(name: str, place: Place) -> None:
    command, watched = GOING_ON[name], [place.out]
    before = contents(place.out)
    undisturbed = place.server.run(place.path, *command, watched=watched)
    assert undisturbed.status == 0, undisturbed.output
    expected = contents(place.out)
    for event in np.linspace(2, undisturbed.events, NUM_KILLS).astype(int):
        write_all(place.out, before)
        killed = place.server.run(
            place.path, *command, watched=watched, die_at=int(event)
        )
        assert killed.status == -signal.SIGKILL, (event, killed.output)
        again = place.server.run(place.path, *command)
        assert again.status == 0, (event, again.output)
        assert contents(place.out) == expected, event


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ONE_FORM if name not in GOING_ON])
def test_a_killed_command_can_be_typed_again(name: str, place: Place) -> None:
    command, watched = COMMANDS[name], [place.out, place.temporary]
    before = contents(place.out) | {name: OLDER}
    write_all(place.out, before)
    undisturbed = place.server.run(place.path, *command, watched=watched)
    assert undisturbed.status == 0, undisturbed.output
    expected = contents(place.out)
    write_all(place.out, before)
    for event in np.linspace(1, undisturbed.events, NUM_EVENTS).astype(int):
        killed = place.server.run(
            place.path, *command, watched=watched, die_at=int(event)
        )
        assert killed.status == -signal.SIGKILL, (event, killed.output)
        check_whole(place.out, expected)
    for share in (3, 2):
        max_bytes = len(expected[name]) // share
        killed = place.server.run(
            place.path, *command, max_bytes=max_bytes, dies_of_size=True
        )
        assert killed.status == -signal.SIGXFSZ, killed.output
        check_whole(place.out, expected)
    again = place.server.run(place.path, *command)
    assert again.status == 0, again.output
    assert contents(place.out) == expected
    assert list(place.temporary.glob("ichfast-*")) == []


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_is_calibrated_is_as_before_or_calibrated(
    place: Place, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", write_patients(tmp_path / "store"))
    (tmp_path / "temporary").mkdir()
    before = contents(run)
    command = ("calibrate", "run", *CPU)
    undisturbed = place.server.run(tmp_path, *command, watched=[run])
    assert undisturbed.status == 0, undisturbed.output
    expected = contents(run)
    assert set(expected) == {*before, LOCK_FILE}
    for event in range(1, undisturbed.events + 1):
        write_all(run, before)
        killed = place.server.run(tmp_path, *command, watched=[run], die_at=event)
        assert killed.status == -signal.SIGKILL, (event, killed.output)
        assert (run / RECORD).read_bytes() in (before[RECORD], expected[RECORD])
        if not all(map(is_final, contents(run))):
            break  # in the middle of writing
    else:
        pytest.fail("it was never killed while it wrote")
    again = place.server.run(tmp_path, *command)
    assert again.status == 0, again.output
    assert contents(run) == expected
