"""Untrusted torch files: what is read, and what is refused before it takes memory."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from ichfast.errors import CheckpointError, ModelError
from ichfast.models import torchfile
from ichfast.models.torchfile import load_torch_file
from ichfast.models.weights import read_tensors
from ichfast.training.checkpoint import load_checkpoint

NUM_BYTES = 5_000_000


class Large:
    """Pickles as a call that allocates."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (NUM_BYTES,)


def write_zip(path: Path, pickled: bytes, *, kind: int = zipfile.ZIP_STORED) -> None:
    """A file as torch writes it, with other contents."""
    torch.save({"model": {}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith(".pkl") else content)


@pytest.mark.parametrize("is_legacy", [True, False])
def test_tensors_come_back_as_they_were_saved(
    tmp_path: Path, *, is_legacy: bool
) -> None:
    saved = {"model": {"a": torch.arange(5.0)}, "step": 3}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=not is_legacy)
    found = load_torch_file(tmp_path / "a.pt")
    torch.testing.assert_close(found["model"]["a"], torch.arange(5.0))
    assert found["step"] == 3


def test_a_file_that_asks_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    write_zip(path, pickle.dumps({"model": {"a": Large()}}, protocol=2))
    assert len(torch.load(path, weights_only=True)["model"]["a"]) == NUM_BYTES
    for chunk_bytes in (2**20, 7, 3):  # the word may span two chunks
        monkeypatch.setattr(torchfile, "_CHUNK_BYTES", chunk_bytes)
        with pytest.raises(pickle.UnpicklingError, match="bytearray"):
            load_torch_file(path)
    with pytest.raises(ModelError, match="something other than plain tensors"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="bytearray"):
        load_checkpoint(path)


def test_a_file_whose_members_are_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_zip(path, bytes(NUM_BYTES), kind=zipfile.ZIP_DEFLATED)
    with pytest.raises(zipfile.BadZipFile, match="compressed"):
        load_torch_file(path)


def test_a_file_whose_members_overlap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_zip(path, bytes(NUM_BYTES))
    content = path.read_bytes()
    at = content.rindex(b"PK\5\6")
    start = int.from_bytes(content[at + 16 : at + 20], "little")
    table, end = content[start:at], bytearray(content[at:])
    number = 2 * int.from_bytes(end[10:12], "little")
    end[8:10] = end[10:12] = number.to_bytes(2, "little")
    end[12:16] = (2 * len(table)).to_bytes(4, "little")
    path.write_bytes(content[:start] + table + table + end)
    with pytest.raises(zipfile.BadZipFile, match="would unpack to 10,0"):
        load_torch_file(path)
