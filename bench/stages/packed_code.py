"""The code of a packed slice, in one thread, against memcpy and other compressors.

Packing and unpacking include the checksums. In the cache each slice is worked on
several times in a row. Out of it there are more slices than most caches hold, each in
memory of its own.

Shape letters: N slices in memory, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from bench.harness.measure import Contender, Meter, Record
from bench.harness.workload import Workload
from bench.peers import peers_of, reason_to_skip
from bench.peers.compressors import Codec, make_codec
from bench.stages.loader import pick_slices
from ichfast.packed import pack, unpack_into
from ichfast.packed.codec import packed_by
from ichfast.store.levels import SOURCE_LEVEL
from ichfast.store.store import Store

STAGE = "packed"

UNCACHED_BYTES = 2**29
"""Memory of the slices that are not in the processor's cache."""

CACHED_SLICES, CACHED_TIMES = 16, 32
"""Slices that are worked on in the cache, and how often in a row."""

NUM_PEER_SLICES = 64
"""Slices whose bytes are compared with those of a peer."""

PEER_SHARE = 8
"""A peer does one of this many pieces of work; each costs the same."""

MIN_UNPACKING, MIN_PACKING_BYTES = 0.5, 2e9
"""Aims for level 512: unpacking out of the cache as a share of memcpy, and packing,
bytes of pixels per second."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Slices to work on."""

    place: str
    """``in cache`` or ``out of cache``."""

    stored_NHW: npt.NDArray[np.uint16]
    out_NHW: npt.NDArray[np.uint16]
    """Where they are unpacked to: one array, or as many as there are slices."""

    times: int
    """How often each slice is worked on in a row."""

    @staticmethod
    def cached(store: Store, level: int) -> Memory:
        """Some slices, one after the other into the same memory.

        Args:
            store: Holds the slices.
            level: One of its levels.
        """
        stored_NHW = _read(store, level, CACHED_SLICES)
        return Memory("in cache", stored_NHW, stored_NHW[:1].copy(), CACHED_TIMES)

    @staticmethod
    def uncached(store: Store, level: int) -> Memory:
        """`UNCACHED_BYTES` of slices into as much memory.

        Args:
            store: Holds the slices; they are repeated if there are too few.
            level: One of its levels.
        """
        slice_bytes = _read(store, level, 1).nbytes
        stored_NHW = _read(store, level, UNCACHED_BYTES // slice_bytes)
        return Memory("out of cache", stored_NHW, stored_NHW.copy(), 1)

    def part(self) -> Memory:
        """One of `PEER_SHARE` pieces of work."""
        if self.times > 1:
            return replace(self, times=self.times // PEER_SHARE)
        return replace(self, stored_NHW=self.stored_NHW[::PEER_SHARE])

    def out_HW(self, number: int) -> npt.NDArray[np.uint16]:
        """Where the slice of a number is unpacked to."""
        return self.out_NHW[number % len(self.out_NHW)]

    def copy(self) -> int:
        """Copy each slice; returns the number of copies."""
        return self.work(lambda k: np.copyto(self.out_HW(k), self.stored_NHW[k]))

    def work(self, job: Callable[[int], object]) -> int:
        """Call a job with the number of each slice; returns the number of calls."""
        for number in range(len(self.stored_NHW)):
            for _ in range(self.times):
                job(number)
        return len(self.stored_NHW) * self.times


def _read(store: Store, level: int, count: int) -> npt.NDArray[np.uint16]:
    """Read slices of one shape, evenly over a store, each into memory of its own."""
    picked = pick_slices(store, count).tolist()
    return np.stack([store.slice_HW(each, level) for each in picked])


def _present_peers(workload: Workload) -> dict[str, Codec]:
    return {
        name: make_codec(name)
        for name in peers_of(STAGE, workload.peers)
        if not reason_to_skip(name)
    }


def note_peer_bytes(
    store: Store, level: int, workload: Workload, meter: Meter
) -> list[Record]:
    """Record the bytes of the peers for some slices, in per cent of the raw ones.

    Args:
        store: Holds the slices.
        level: One of its levels.
        workload: What is measured.
        meter: Makes the records.
    """
    stored_NHW = _read(store, level, NUM_PEER_SLICES)
    num_bytes = {
        name: sum(len(codec.pack(each)) for each in stored_NHW)
        for name, codec in _present_peers(workload).items()
    }
    return [
        meter.note(
            [100 * packed_bytes / stored_NHW.nbytes],
            stage=STAGE,
            case=f"level {level}, bytes",
            name=name,
            role="peer",
            unit="%",
            cache="none",
            settings={"level": level, "slices": len(stored_NHW)},
        )
        for name, packed_bytes in num_bytes.items()
    ]


def measure_code(store: Store, workload: Workload, meter: Meter) -> list[Record]:
    """Measure packing and unpacking in one thread, slices per second.

    Args:
        store: Holds the slices.
        workload: What is measured.
        meter: Makes the records.
    """
    peers = _present_peers(workload)
    records = [
        record
        for level in store.levels
        for make_memory in (Memory.cached, Memory.uncached)
        for record in _measure_memory(make_memory(store, level), level, peers, meter)
    ]
    return records + [
        meter.left_out(
            stage=STAGE,
            case="the code of a slice",
            name=name,
            role="peer",
            reason=reason_to_skip(name),
        )
        for name in peers_of(STAGE, workload.peers)
        if name not in peers
    ]


def _measure_memory(
    memory: Memory, level: int, peers: Mapping[str, Codec], meter: Meter
) -> list[Record]:
    ours = Codec(pack, unpack_into)
    slice_bytes = memory.stored_NHW[0].nbytes
    is_aim = level == SOURCE_LEVEL and memory.times == 1
    records = []
    for verb, contender_of in (("unpacking", _unpacker), ("packing", _packer)):
        of_copy = {"aim_ratio": MIN_UNPACKING} if verb == "unpacking" else {}
        of_ours = {"aim": MIN_PACKING_BYTES / slice_bytes} if verb == "packing" else {}
        records += meter.compare(
            [
                replace(
                    contender_of("ichfast", "ichfast", ours, memory),
                    settings=of_ours if is_aim else {},
                ),
                Contender(
                    name="memcpy",
                    role="limit",
                    run=memory.copy,
                    settings=of_copy if is_aim else {},
                ),
                *(
                    contender_of(name, "peer", codec, memory.part())
                    for name, codec in peers.items()
                ),
            ],
            stage=STAGE,
            case=f"{verb} level {level}, {memory.place}",
            unit="slices",
            cache="none",
            settings={
                "level": level,
                "slices": len(memory.stored_NHW),
                "times": memory.times,
                "unit_bytes": slice_bytes,
                "threads": 1,
                "instructions": packed_by(),
            },
        )
    return records


def _packer(name: str, role: str, codec: Codec, memory: Memory) -> Contender:
    return Contender(
        name=name,
        role=role,
        run=lambda: memory.work(lambda k: codec.pack(memory.stored_NHW[k])),
    )


def _unpacker(name: str, role: str, codec: Codec, memory: Memory) -> Contender:
    @cache  # made in the warm-up turn, so that only a peer that fails is left out
    def packed() -> list[bytes]:
        return [codec.pack(stored_HW) for stored_HW in memory.stored_NHW]

    return Contender(
        name=name,
        role=role,
        before=packed,
        run=lambda: memory.work(lambda k: codec.unpack(packed()[k], memory.out_HW(k))),
    )
