"""Damaged pages of a run that was stopped are found and made again."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from ichfast.errors import SourceError, StoreError
from ichfast.prepare.journal import Journal
from ichfast.prepare.plan import Unit
from ichfast.prepare.prepare import prepare_store
from ichfast.sources.listing import Listing
from tests.conftest import contents, random_hu, write_dicom

NUM_FILES = 6

pytestmark = pytest.mark.usefixtures("units_of_four")

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: `source`, the finished store `calm`, and `store` with two pages."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "source").mkdir()
    for k in range(NUM_FILES - 1):
        write_dicom(folder / "source" / f"{k}", f"ID_{k}", hu_HW=random_hu(k))
    (folder / "source" / "note.txt").write_text("no image")
    run([folder / "source"], folder / "calm", max_rejected="1")
    with pytest.raises(SourceError, match="1 of 6 files were rejected"):
        run([folder / "source"], folder / "store", max_rejected="0")
    return folder


@pytest.fixture
def store(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped / "store", tmp_path / "store"))


def flip(file: Path, place: int) -> None:
    """Flip a bit of the byte at `place`."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << (place % 8)
    file.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_page_damaged_before_the_run_continues_is_made_again(
    stopped: Path, store: Path, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    page = store / "journal" / "00001.page"
    flip(page, int(share * (page.stat().st_size - 1)))
    sound = store / "journal" / "00000.page"
    before = sound.stat().st_mtime_ns
    with pytest.raises(SourceError, match="1 of 6 files were rejected"):
        run([stopped / "source"], store, max_rejected="0")
    assert "unit 00001 is done again: its page" in caplog.text
    assert "unit 00000 is done again" not in caplog.text
    assert sound.stat().st_mtime_ns == before
    run([stopped / "source"], store, max_rejected="1")
    assert contents(store) == contents(stopped / "calm")


def test_a_page_is_not_read_with_a_flipped_bit_wherever_it_is(store: Path) -> None:
    journal = Journal(store, (512, 256))
    unit = Unit(1, 4, Listing.of([]))
    page = store / "journal" / "00001.page"
    content = page.read_bytes()
    assert journal.num_rejected(unit) == 1
    last = len(content) - 1
    for place in {*range(0, last, last // 150), *range(last - 5, last + 1)}:
        flip(page, place)
        with pytest.raises(StoreError, match=r"00001\.page was damaged since"):
            journal.read(unit)
        page.write_bytes(content)
    for length in (0, 1, 4, 5, len(content) - 1):
        page.write_bytes(content[:length])
        with pytest.raises(StoreError, match="was damaged since"):
            journal.num_rejected(unit)
    page.write_bytes(bytes(4))
    with pytest.raises(StoreError, match="was damaged since"):
        journal.read(unit)


@pytest.mark.usefixtures("listed_once")
def test_a_damaged_plan_is_another_plan(stopped: Path, store: Path) -> None:
    plan = store / "journal" / "plan.json"
    content = plan.read_bytes()
    for place in range(len(content)):
        flip(plan, place)
        with pytest.raises(StoreError, match="was made from something else") as caught:
            run([stopped / "source"], store, max_rejected="1")
        assert "\n" not in str(caught.value)
        plan.write_bytes(content)
