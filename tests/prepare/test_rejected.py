"""Files that are left out are named with their reasons, also where no store is made."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from pydicom.uid import JPEG2000Lossless

from ichfast.dicom import slices
from ichfast.errors import SourceError, StoreError
from ichfast.prepare import rejected as rejected_module
from ichfast.prepare.prepare import prepare_store
from ichfast.prepare.rejected import format_rejected, rejected_path
from tests.dicom.dicom_files import ITEM, ct_file, ramp, rejection
from tests.dicom.real_files import HUNT, needs_hunt

run = partial(prepare_store, labels=None, workers=1, keep_ids=True)


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    """Two files that are no DICOM, and an empty one."""
    folder = tmp_path / "unreadable"
    folder.mkdir()
    (folder / "Somebody_notes.txt").write_text("no image")
    (folder / "b.txt").write_text("neither")
    (folder / "c.dcm").touch()
    return folder


def refusal(sources: list[Path], store: Path, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        run(sources, store, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_where_nothing_can_be_stored_the_reasons_are_told_and_kept(
    unreadable: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert refusal([unreadable], store) == (
        "none of 3 files is an axial CT slice: 1 empty (0 bytes), 2 not-dicom (8 bytes "
        f"without DICM at byte 128); {store}.rejected.csv lists them; mend what is "
        "named there, or name a folder or an archive of head CT DICOM files"
    )
    assert not store.exists()
    table = pd.read_csv(tmp_path / "store.rejected.csv")
    assert table.to_numpy().tolist() == [
        ["Somebody_notes.txt", "not-dicom", "8 bytes without DICM at byte 128"],
        ["b.txt", "not-dicom", "7 bytes without DICM at byte 128"],
        ["c.dcm", "empty", "0 bytes"],
    ]


def test_with_hashed_ids_the_list_has_numbers_of_files(
    unreadable: Path, tmp_path: Path
) -> None:
    message = refusal([unreadable], tmp_path / "store", keep_ids=False)
    table = pd.read_csv(tmp_path / "store.rejected.csv")
    assert table["path"].tolist() == [f"entry {k} of source 0" for k in range(3)]
    assert "Somebody" not in message


def test_jpeg_files_without_a_decoder_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slices, "_find_plugin", lambda _decoder: None)
    error = rejection(ct_file(ramp(), syntax=JPEG2000Lossless, pixels=ITEM + bytes(9)))
    table = pd.DataFrame({"reason": [error.code] * 2, "detail": [error.detail] * 2})
    shown = format_rejected(table)
    assert shown.startswith("2 no-decoder (JPEG 2000 Image Compression (Lossless Only)")
    assert shown.endswith("; pip install 'ichfast[decoders]')")


HUNTED = {
    "zip_encrypted": "3 unreadable-archive (the zip is encrypted; unpack it with its "
    "password, and name the folder); ",
    "zip_deflate64": "3 unreadable-archive (the zip is packed by Deflate64 (method 9), "
    "only deflate is read; unpack it, and name the folder); ",
    "encapsulated_uncompressed_1.98.dcm": "1 no-decoder (Encapsulated Uncompressed "
    "Explicit VR Little Endian is not supported); ",
}
"""The reasons for hunted files."""


@pytest.mark.parametrize("name", HUNTED)
@needs_hunt
@pytest.mark.slow
def test_hunted_files_are_named_as_what_they_are(name: str, tmp_path: Path) -> None:
    assert f"is an axial CT slice: {HUNTED[name]}" in refusal(
        [HUNT / name], tmp_path / "store"
    )
    assert len(pd.read_csv(tmp_path / "store.rejected.csv")) >= 1


def test_the_list_is_replaced_by_the_next_run_and_goes_with_a_store(
    unreadable: Path, source: Path, tmp_path: Path
) -> None:
    store, listed = tmp_path / "store", tmp_path / "store.rejected.csv"
    refusal([unreadable], store)
    (unreadable / "b.txt").unlink()
    refusal([unreadable], store)
    assert len(pd.read_csv(listed)) == 2
    (source / "letter.txt").write_text("no image")
    run([source], store)
    assert not listed.exists()
    assert len(pd.read_csv(store / "rejected.csv")) == 1


def test_a_list_in_the_source_is_no_file_of_it(
    unreadable: Path,
) -> None:
    for _ in range(2):
        assert refusal([unreadable], unreadable / "store").startswith("none of 3 files")


def test_a_file_of_that_name_that_is_no_list_stays(
    unreadable: Path, source: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "store.rejected.csv"
    mine.write_text("mine")
    assert "lists them" not in refusal([unreadable], tmp_path / "store")
    run([source], tmp_path / "store")
    assert mine.read_text() == "mine"


def test_a_list_that_cannot_be_written_is_an_error_and_the_command_continues(
    unreadable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rejected_module, "rejected_csv", full)
        with pytest.raises(StoreError, match=r"cannot write .*rejected\.csv: No space"):
            run([unreadable], tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "unreadable"]
    assert "lists them" in refusal([unreadable], tmp_path / "store")


def test_files_left_out_of_a_store_are_named_with_the_first_reason(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (source / "letter.txt").write_text("no image")
    run([source], tmp_path / "store")
    assert "left out: 1 not-dicom (8 bytes without DICM at byte 128)" in caplog.messages


def test_too_many_rejected_files_are_named_with_the_first_reason(
    source: Path, tmp_path: Path
) -> None:
    (source / "letter.txt").write_text("no image")
    assert refusal([source], tmp_path / "store", max_rejected="0") == (
        "1 of 24 files were rejected: 1 not-dicom (8 bytes without DICM at byte 128); "
        f"--max-rejected allows 0; see {tmp_path}/store/rejected.csv, then repeat the "
        "command with a higher --max-rejected: nothing is decoded again"
    )


def test_names_of_files_are_not_shown_for_duplicates() -> None:
    table = pd.DataFrame(
        {"reason": ["duplicate-conflict"], "detail": ["same as Somebody.dcm"]}
    )
    assert format_rejected(table) == "1 duplicate-conflict"


def test_the_list_lies_beside_the_path_of_the_store(tmp_path: Path) -> None:
    assert rejected_path(tmp_path / "store") == tmp_path / "store.rejected.csv"
