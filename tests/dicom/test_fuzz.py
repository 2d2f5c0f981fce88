"""Reading a damaged file or archive gives slices or a rejection.

An input is made from its number alone: a whole file, synthetic or (if present) real, is
damaged in one to three ways. A worker process reads many inputs. If a decoder ends the
process, the number of the input is known, and `make_input` makes it again.

    make fuzz FUZZ_S=3600      reads further inputs for an hour
"""

from __future__ import annotations

import ctypes
import io
import math
import multiprocessing
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from ichfast.dicom.slices import read_slices
from ichfast.errors import REJECT_CODES, RejectError, SourceError
from ichfast.sources import archives, sources
from ichfast.sources.sources import list_entries, read_entries
from ichfast.system.memory import limit_memory
from tests.dicom.compressed_frames import encoded
from tests.dicom.dicom_files import DELIMITER, ITEM, ct_file
from tests.dicom.real_files import DATA
from tests.inflating import limit_s

NUM_INPUTS = 20_000
NUM_ARCHIVES = 1_000
HANG_S = 30
"""Processor time for one input after which the worker is ended, seconds."""
LIMIT_BYTES = 2**30
"""Upper limit of the growth of the worker's peak memory."""
MAX_BASE_BYTES = 60_000
"""Upper limit of real files, because reading larger ones finds nothing else."""
FUZZ_S = float(os.environ.get("FUZZ_S", 0))

Mutation = Callable[[bytearray, random.Random], None]


# ---- what is damaged -------------------------------------------------------------


@cache
def bases() -> tuple[bytes, ...]:
    """Undamaged files, in a fixed order."""
    raw = np.arange(24 * 24, dtype="<i2").reshape(24, 24)
    frames = np.stack([raw, raw])
    synthetic = [
        ct_file(raw),
        ct_file(raw, syntax=uid.ImplicitVRLittleEndian),
        ct_file(raw, syntax=uid.DeflatedExplicitVRLittleEndian),
        ct_file(raw, BitsStored=12, HighBit=11, PixelPaddingValue=7),
        ct_file(frames, NumberOfFrames="2"),
        *map(encoded, (uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless)),
    ]
    real = [
        path.read_bytes()
        for path in sorted(DATA.glob("[zd]*/**/*"))
        if path.is_file() and 0 < path.stat().st_size < MAX_BASE_BYTES
    ]
    return (*synthetic, *real)


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content) + 1) :]


def flip_bits(content: bytearray, draw: random.Random) -> None:
    span = draw.choice([len(content), min(len(content), 2000)])
    for _ in range(draw.choice([1, 3, 30])):
        content[draw.randrange(span)] ^= 1 << draw.randrange(8)


def write_extremes(content: bytearray, draw: random.Random) -> None:
    span = draw.choice([len(content), min(len(content), 2000)])
    for _ in range(draw.choice([1, 4])):
        value = draw.choice([b"\0\0", b"\xff\xff", b"\xff\x7f", b"\xff" * 4, b"\0" * 4])
        at = draw.randrange(span)
        content[at : at + len(value)] = value


ELEMENT = re.compile(rb"[\x02-\x54\xe0][\x00-\x7f]..[ACDFILOPSTU][A-Z](..)", re.DOTALL)


def swap_lengths(content: bytearray, draw: random.Random) -> None:
    lengths = [match.span(1) for match in ELEMENT.finditer(content, 128)]
    if len(lengths) > 1:
        (a, b), (c, d) = draw.sample(lengths, 2)
        content[a:b], content[c:d] = content[c:d], content[a:b]


def repeat_part(content: bytearray, draw: random.Random) -> None:
    first, last = sorted(draw.randrange(len(content)) for _ in range(2))
    content[last:last] = content[first : min(last, first + 4000)]


def remove_part(content: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(content))
    del content[at : at + draw.choice([1, 2, 8, 300])]


SEQUENCES = (0x0008_1140, 0x0028_3000, 0x5200_9229, 0x5200_9230, 0x0009_1001)


def nest_sequences(content: bytearray, draw: random.Random) -> None:
    """Put a sequence in a sequence in a sequence ... before the pixels."""
    at = content.find(b"\xe0\x7f\x10\x00")
    depth = draw.choice([3, 60, 600, 3000])
    tag = draw.choice(SEQUENCES)
    head = struct.pack("<HH2s2xI", tag >> 16, tag & 0xFFFF, b"SQ", 0xFFFF_FFFF)
    opened = (head + ITEM + b"\xff" * 4) * depth
    closed = (b"\xfe\xff\x0d\xe0" + bytes(4) + DELIMITER) * depth
    content[at:at] = opened + draw.choice([closed, b"", closed[:-9]])


DIMENSIONS = (0x0028_0010, 0x0028_0011, 0x0028_0100, 0x0028_0101, 0x0028_0102)


def promise_much(content: bytearray, draw: random.Random) -> None:
    """Set rows, columns or bits to numbers that a header should not have."""
    for tag in draw.sample(DIMENSIONS, draw.choice([1, 2])):
        at = content.find(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"US", 2))
        if at >= 0:
            number = draw.choice([0, 1, 255, 4096, 4097, 32768, 65535])
            content[at + 8 : at + 10] = number.to_bytes(2, "little")


def promise_many_frames(content: bytearray, draw: random.Random) -> None:
    """Make slices small, and so many of them that their pixels would be in range."""
    at = content.find(struct.pack("<HH2sH", 0x28, 0x10, b"US", 2))
    if at >= 0:
        number = draw.choice([b"4097", b"100000", b"1000000000"])
        content[at + 8 : at + 10] = b"\1\0"
        content[at:at] = struct.pack("<HH2sH", 0x28, 8, b"IS", len(number)) + number
        at = content.find(struct.pack("<HH2sH", 0x28, 0x11, b"US", 2))
        content[at + 8 : at + 10] = b"\1\0"


CODESTREAM_HEADS = (b"\xff\x51\x00", b"\xff\xf7\x00", b"\xff\xc3\x00", b"\xff\xc1\x00")


def promise_much_in_the_codestream(content: bytearray, draw: random.Random) -> None:
    """Change sizes, tiles and the number of components of compressed pixels."""
    for head in CODESTREAM_HEADS:
        at = content.find(head)
        if at >= 0:
            for _ in range(draw.choice([1, 3])):
                place = at + 4 + draw.randrange(40)
                content[place : place + 2] = draw.choice(
                    [b"\x10\x00", b"\x40\x00", b"\x00\x01", b"\xff\xff", b"\x00\x40"]
                )


@cache
def bomb(num_mib: int) -> bytes:
    """A deflated file of zeros, a thousandth of what it inflates to."""
    packer = zlib.compressobj(wbits=-15)
    syntax = uid.DeflatedExplicitVRLittleEndian
    head = ct_file(np.zeros((1, 1), "<i2"), syntax=syntax)
    content = head[: head.index(syntax.encode()) + len(syntax)]
    pixels = struct.pack("<HH2s2xI", 0x7FE0, 0x10, b"OW", 0xFFFF_FFF0)
    content += packer.compress(pixels)
    content += b"".join(packer.compress(bytes(2**20)) for _ in range(num_mib))
    return content + packer.flush()


def pack_a_bomb(content: bytearray, draw: random.Random) -> None:
    if draw.random() < 0.005:  # each costs most of a second
        content[:] = bomb(draw.choice([16, 200, 600]))


MUTATIONS: tuple[Mutation, ...] = (
    *(truncate, flip_bits, write_extremes, swap_lengths, repeat_part, remove_part),
    *(nest_sequences, promise_much, promise_many_frames),
    *(promise_much_in_the_codestream, pack_a_bomb),
)


def make_input(number: int) -> bytes:
    """The bytes of an input, which depend on its number alone."""
    draw = random.Random(number)
    content = bytearray(draw.choice(bases()))
    for _ in range(draw.choice([1, 1, 2, 3])):
        if content:
            draw.choice(MUTATIONS)(content, draw)
    return bytes(content)


CLIMBING = ("../../out.dcm", "/etc/out.dcm", "a/../../out.dcm", "n\n.dcm")


def write_archive(path: Path, draw: random.Random) -> None:
    """A damaged archive of damaged files with names that climb out of the folder."""
    packed = io.BytesIO()
    members = [(draw.choice(CLIMBING), make_input(draw.randrange(10**6))) for _ in "ab"]
    if path.suffix == ".zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in dict(members).items():
                archive.writestr(name, content)
    else:
        mode = draw.choice(["w:", "w:gz", "w:xz"])
        with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    damaged = bytearray(packed.getvalue())
    draw.choice((flip_bits, truncate, write_extremes, repeat_part))(damaged, draw)
    path.write_bytes(damaged)


# ---- who reads it ----------------------------------------------------------------


class Watch(ctypes.Structure):
    """Memory shared with the worker: the number of the current input."""

    _fields_ = (("number", ctypes.c_longlong),)


@dataclass
class Outcome:
    """Result of reading many inputs."""

    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    """Seconds and number of the slowest input."""
    grown_bytes: int = 0
    """How much the worker's peak memory grew."""


_watch = Watch()


def start(watch: Watch) -> None:
    global _watch
    _watch = watch
    # Decoders write messages about their input to the terminal.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def peak_bytes() -> int:
    """Peak memory of this process; `getrusage` would include its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def code_of(content: bytes) -> str:
    try:
        for _ in read_slices(content):
            pass
    except RejectError as error:
        return error.code
    return "stored"


def read_all(numbers: range, end_s: float) -> Outcome:
    """Read inputs in the worker, until they or the time end."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    outcome = Outcome()
    warm = [code_of(whole) for whole in bases()]
    assert "stored" in warm
    for size in (16, 200, 600):
        bomb(size)
    before_bytes = peak_bytes()
    limit_memory(LIMIT_BYTES)  # as in a worker of prepare
    for number in numbers:
        if time.monotonic() > end_s:
            break
        content = make_input(number)
        _watch.number = number
        signal.setitimer(signal.ITIMER_PROF, HANG_S)
        began_s = time.process_time()
        code = code_of(content)
        took_s = time.process_time() - began_s
        signal.setitimer(signal.ITIMER_PROF, 0)
        outcome.codes[code] += 1
        outcome.slowest = max(outcome.slowest, (took_s, number))
    outcome.grown_bytes = peak_bytes() - before_bytes
    return outcome


def fuzz(numbers: range, for_s: float) -> Outcome:
    """Read inputs in a worker that may die.

    Raises:
        AssertionError: the worker died; the message has the number of the input.
    """
    context = multiprocessing.get_context("spawn")
    watch = context.RawValue(Watch)
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=start, initargs=(watch,)
    ) as pool:
        try:
            return pool.submit(read_all, numbers, time.monotonic() + for_s).result()
        except BrokenProcessPool:
            pytest.fail(f"input {watch.number} ended its process")


def check(outcome: Outcome) -> None:
    assert set(outcome.codes) <= {"stored", *REJECT_CODES}
    assert outcome.slowest[0] < limit_s(), f"input {outcome.slowest[1]} is slow"
    assert outcome.grown_bytes < LIMIT_BYTES


# ---- tests -----------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.slow
def test_damaged_files_are_read_or_rejected_soon_and_in_little_memory() -> None:
    outcome = fuzz(range(NUM_INPUTS), for_s=math.inf)
    assert outcome.codes.total() == NUM_INPUTS
    assert min(outcome.codes["stored"], outcome.codes["bad-header"]) > 500
    assert {"too-large", "truncated-pixels", "decoder-error"} < set(outcome.codes)
    check(outcome)


@pytest.mark.skipif(FUZZ_S == 0, reason="make fuzz FUZZ_S=600 runs it for 600 s")
def test_further_damaged_files_are_read_or_rejected_too() -> None:
    check(fuzz(range(NUM_INPUTS, 10**12), for_s=FUZZ_S))


READ_ALONE = """
import sys
from ichfast.dicom.slices import read_slices
print(sum(1 for _ in read_slices(sys.stdin.buffer.read())))
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.slow
def test_frames_are_not_in_memory_together() -> None:
    frame = np.zeros((4096, 4096), np.uint16)
    num_frames = 36  # 1.2 GB
    content = encoded(uid.JPEG2000Lossless, frame, num_frames)
    assert len(content) < 10_000
    command = [sys.executable, "-c", READ_ALONE]
    done = subprocess.run(
        command, input=content, capture_output=True, timeout=600, check=True
    )
    num_found, peak_kib = map(int, done.stdout.split())
    assert num_found == num_frames
    assert peak_kib * 1024 < LIMIT_BYTES


def test_an_input_is_made_from_its_number_alone() -> None:
    assert [make_input(number) for number in range(50)] == [
        make_input(number) for number in range(50)
    ]


class ThisProcess:
    """A `LimitedProcess` that calls functions here, because each one takes 0.3 s."""

    def __enter__(self) -> ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def iterate(
        self, function: Callable[..., Iterator[Any]], *arguments: object
    ) -> Iterator[Any]:
        return function(*arguments)


@pytest.mark.slow
def test_damaged_archives_are_read_or_refused_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    draw = random.Random(5)
    codes: Counter[str] = Counter()
    with archives.lister() as process:  # one for all: it takes 0.1 s to start
        monkeypatch.setattr(archives, "lister", lambda: nullcontext(process))
        monkeypatch.setattr(sources, "LimitedProcess", ThisProcess)
        for _ in range(NUM_ARCHIVES):
            path = inner / draw.choice(["one.zip", "one.tar"])
            write_archive(path, draw)
            try:
                for _entry, content in read_entries(list_entries([path])):
                    is_read = isinstance(content, bytes)
                    codes["read" if is_read else content.code] += 1  # type: ignore[union-attr]
            except SourceError:
                codes["refused"] += 1
            path.unlink()
    assert set(codes) <= {"read", "refused", *REJECT_CODES}
    assert min(codes["read"], codes["refused"], codes["unreadable-archive"]) > 20
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "most"]
