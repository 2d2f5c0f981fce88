"""Damaged volumes are read or rejected, soon and in little memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ichfast.errors import REJECT_CODES, RejectError
from ichfast.nifti.header import is_nifti
from ichfast.nifti.volume import read_volume
from ichfast.system.limits import LimitedProcess
from tests.inflating import limit_s
from tests.mutations import mutations
from tests.nifti.volumes import head_hu, nifti, packed, with_field

NUM_HEADERS = 2_000
LIMIT_BYTES = 2**30
"""Upper limit of the growth of the reader's peak memory."""
CALL_S = 120.0
"""Upper limit of the processor time for all volumes, seconds."""


def damaged_headers() -> Iterator[bytes]:
    """Volumes whose first 352 bytes are damaged, of each encoding in turn."""
    voxels = head_hu((24, 20, 6))
    bases = [
        nifti(voxels, slope=1, intercept=-1),
        nifti(voxels.astype(np.float32), big_endian=True),
        nifti(voxels, version=2),
    ]
    for base in bases:
        for number, head in enumerate(mutations(base[:352], 5, NUM_HEADERS // 3 + 1)):
            content = head + base[352:]
            yield packed(content) if number % 2 else content


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def outcome_of(content: bytes) -> str:
    if not is_nifti(content):
        return "no nifti"
    try:
        for _ in read_volume(content, "head.nii"):
            pass
    except RejectError as error:
        return error.code
    return "stored"


def read_all(contents: list[bytes]) -> Iterator[tuple[str, float, int]]:
    """Outcome, seconds and growth of the peak memory for each volume."""
    outcome_of(nifti(head_hu((24, 20, 6))))  # imports nibabel
    before_bytes = peak_bytes()
    for content in contents:
        began_s = time.process_time()
        code = outcome_of(content)
        yield code, time.process_time() - began_s, peak_bytes() - before_bytes


def read_limited(contents: list[bytes]) -> Counter[str]:
    """Read volumes as a worker of prepare does; count the outcomes."""
    with LimitedProcess(extra_bytes=LIMIT_BYTES, timeout_s=CALL_S) as process:
        results = list(process.iterate(read_all, contents))
    assert len(results) == len(contents)
    assert max(seconds for _, seconds, _ in results) < limit_s()
    assert max(grown_bytes for _, _, grown_bytes in results) < LIMIT_BYTES
    return Counter(code for code, _, _ in results)


@pytest.mark.alone
@pytest.mark.slow
def test_damaged_headers_are_read_or_rejected() -> None:
    codes = read_limited(list(damaged_headers()))
    assert codes.total() >= NUM_HEADERS
    assert set(codes) <= {"stored", "no nifti", *REJECT_CODES}
    assert codes["stored"] > 300
    assert {"bad-header", "not-ct", "too-large", "truncated-pixels"} < set(codes)


@pytest.mark.alone
@pytest.mark.slow
def test_bombs_and_lies_are_rejected_in_little_memory() -> None:
    small = nifti(head_hu((24, 20, 6)))
    bomb = packed(small + bytes(2**29))
    liars = [
        with_field(content, "dim", "h", 3, *shape)
        for content in (small, small[:352] + bytes(2**20))
        for shape in [(4096, 4096, 16), (4096, 4096, 32_767), (4096, 1, 4096)]
    ]
    assert len(bomb) < 3_000_000
    zeros = with_field(small, "dim", "h", 3, 512, 512, 1024)[:352] + bytes(2**29)
    codes = read_limited(
        [
            *(bomb, packed(zeros)),
            with_field(small, "vox_offset", "f", 2.0**62),
            with_field(small, "vox_offset", "f", float("nan")),
            with_field(small, "vox_offset", "f", -1),
            *liars,
            *map(packed, liars),
        ]
    )
    assert codes["stored"] == 1  # the bomb, whose voxels are the first 5,760 bytes
    assert codes["not-hu"] == 1  # the zeros, as many as a volume may have
    assert set(codes) <= {
        *("stored", "bad-header", "not-hu", "too-large", "truncated-pixels"),
    }
