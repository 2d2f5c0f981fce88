"""Checksums in JSON documents and beside tables."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from pathlib import Path

import google_crc32c
import pytest

from ichfast.errors import PredictionError
from ichfast.system import checksums
from ichfast.system.checksums import (
    ChecksumError,
    check_document,
    checksum_path,
    output_with_checksum,
    read_with_checksum,
    with_checksum,
)


def write(path: Path, text: str) -> None:
    with output_with_checksum(path, PredictionError) as temporary:
        temporary.write_text(text)


DOCUMENT: dict[str, object] = {"b": 1.5, "a": [1, None, "ä"], "c": {"d": True}}


def test_the_last_field_is_the_crc_of_the_others() -> None:
    found = json.loads(with_checksum(DOCUMENT))
    assert list(found) == ["b", "a", "c", "crc32c"]
    crc32c = found.pop("crc32c")
    assert found == DOCUMENT
    assert crc32c == google_crc32c.value(json.dumps(DOCUMENT).encode())


def test_what_was_written_passes() -> None:
    text = with_checksum(DOCUMENT)
    check_document(text.encode(), json.loads(text))


@pytest.mark.parametrize(
    "change",
    [("1.5", "1.6"), ("true", "false"), (": ", ":  "), ('"crc32c": ', '"crc": ')],
    ids=["number", "truth", "space", "field"],
)
def test_a_change_is_noticed(change: tuple[str, str]) -> None:
    text = with_checksum(DOCUMENT).replace(*change)
    with pytest.raises(ChecksumError, match="edited, or is damaged"):
        check_document(text.encode(), json.loads(text))


def test_the_checksum_is_that_of_sha256sum(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", "a,b\n1,2\n")
    assert read_with_checksum(tmp_path / "p.csv") == b"a,b\n1,2\n"
    outcome = subprocess.run(
        ["sha256sum", "-c", "p.csv.sha256"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert outcome.stdout == "p.csv: OK\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "p.csv.sha256"]


@pytest.mark.parametrize("changed", ["p.csv", "p.csv.sha256"])
def test_a_changed_table_or_checksum_is_refused(tmp_path: Path, changed: str) -> None:
    write(tmp_path / "p.csv", "a,b\n1,2\n")
    path = tmp_path / changed
    path.write_text(path.read_text().replace("2", "3"))
    with pytest.raises(ChecksumError, match=r"delete p\.csv\.sha256 to read it"):
        read_with_checksum(tmp_path / "p.csv")


def test_a_table_without_a_checksum_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.csv").write_text("a\n")
    with caplog.at_level(logging.WARNING):
        assert read_with_checksum(tmp_path / "p.csv") == b"a\n"
    assert "no p.csv.sha256 beside it" in caplog.text


def test_a_table_is_replaced_with_its_checksum(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", "old\n")
    write(tmp_path / "p.csv", "new\n")
    assert read_with_checksum(tmp_path / "p.csv") == b"new\n"
    digest = hashlib.sha256(b"new\n").hexdigest()
    assert checksum_path(tmp_path / "p.csv").read_text() == f"{digest}  p.csv\n"


@pytest.mark.parametrize("has_checksum", [True, False])
def test_at_every_moment_the_table_has_a_valid_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_checksum: bool
) -> None:
    path = tmp_path / "p.csv"
    write(path, "old\n")
    if not has_checksum:
        checksum_path(path).unlink()
    found = []
    rename = Path.replace

    def observe(temporary: Path, target: Path) -> Path:
        renamed = rename(temporary, target)
        found.append((target.name, read_with_checksum(path)))
        return renamed

    monkeypatch.setattr(Path, "replace", observe)
    write(path, "new\n")
    assert found == [
        ("p.csv.sha256", b"old\n"),
        ("p.csv", b"new\n"),
        ("p.csv.sha256", b"new\n"),
    ]


def test_an_error_in_the_block_leaves_the_table_before(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    write(path, "old\n")
    with (
        pytest.raises(PredictionError, match="No space left"),
        output_with_checksum(path, PredictionError),
    ):
        raise OSError(28, "No space left on device")
    assert read_with_checksum(path) == b"old\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checksum_that_cannot_be_written_is_the_callers_error(tmp_path: Path) -> None:
    checksum_path(tmp_path / "p.csv").mkdir()
    with pytest.raises(PredictionError, match=r"cannot write .*p\.csv\.sha256"):
        write(tmp_path / "p.csv", "a\n")
    assert not (tmp_path / "p.csv").exists()


def test_the_field_and_suffix_are_as_documented() -> None:
    assert checksums.SUFFIX in (checksums.__doc__ or "")
    assert checksums.FIELD in (checksums.__doc__ or "")
