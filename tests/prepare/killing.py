"""Runs of prepare and pack that are killed at a given event of a given stage.

A server process has imported everything and forks each run, so a run costs tens of
milliseconds. An event is any call of, or return from, a function in Python or C, as
`sys.setprofile` sees them: so a run dies where it is told to, on any machine, between
any two operations on files. With a delay it dies a moment later, inside of one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ichfast.dicom.slices import Slice, read_slices
from ichfast.prepare import packing, pool, prepare, repair
from ichfast.prepare.convert import serve_units
from ichfast.prepare.journal import Journal, Page
from ichfast.prepare.plan import Unit
from ichfast.system import fork_server
from ichfast.system.fork_server import ForkServer

STAGES = (
    *("listing", "waiting", "decoding", "page"),
    *("merging", "finishing", "publishing"),
)
"""`decoding` and `page` (of the journal) are those of a worker, whose parent is then
killed; `waiting` is what the parent does meanwhile."""

REPAIR_STAGES = ("finding", "waiting", "copying")
"""Stages of a repair; `copying` lasts until the end."""

PACK_STAGES = ("reading", "copying", "finishing", "publishing")
"""Stages of a pack; `copying` is that of a thread that writes a shard."""

RUN_S = 60.0
"""The server is killed when a run takes longer."""

_events: Counter[str] = Counter()
"""How often this process passed each stage."""


@dataclass(frozen=True, slots=True)
class Trap:
    """The event at which a run is killed. Sent to its workers with every unit."""

    stage: str
    """One of `STAGES`, `REPAIR_STAGES` or `PACK_STAGES`; any other text kills nothing.
    """

    event: int
    """Number of the event in that stage and one process, from 1."""

    delay_s: float
    """Delay after that event, seconds; only in the parent."""

    main_pid: int
    """The process to kill."""

    traces: Path
    """A folder with a file ``sprung`` after the kill, and one STAGE.PID per process."""

    def enter(self, stage: str) -> None:
        """Count this process's events for `stage` from now on."""
        self.leave()

        def count(_frame: object, _kind: str, _argument: object) -> None:
            _events[stage] += 1
            if stage == self.stage and _events[stage] == self.event:
                self._spring()

        sys.setprofile(count)

    def leave(self) -> None:
        """Count no more, and leave a trace of how many events there were."""
        sys.setprofile(None)
        for stage, count in _events.items():
            (self.traces / f"{stage}.{os.getpid()}").write_text(str(count))

    def _spring(self) -> None:
        sys.setprofile(None)
        (self.traces / "sprung").touch()
        if self.delay_s and os.getpid() == self.main_pid:
            # The kernel's default for this signal ends a process as SIGKILL does.
            signal.setitimer(signal.ITIMER_REAL, self.delay_s)
        else:
            os.kill(self.main_pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class TrappedJournal(Journal):
    """A journal that writes its pages and publishes inside a trap."""

    trap: Trap = field(kw_only=True)

    def write(self, unit: Unit, page: Page) -> None:
        self.trap.enter("page")
        Journal.write(self, unit, page)
        self.trap.leave()

    def publish(self) -> bool:
        if (self.next / "store.json").exists():
            self.trap.enter("publishing")
        return Journal.publish(self)


@dataclass(frozen=True, slots=True)
class TrappedRead:
    """`read_slices` inside a trap."""

    trap: Trap

    def __call__(self, content: bytes, _name: str) -> Iterator[Slice]:
        self.trap.enter("decoding")
        slices = list(read_slices(content))
        self.trap.leave()
        yield from slices


def _entering(trap: Trap, module: ModuleType, stage: str, name: str) -> Any:
    """A step of a module that begins a stage."""
    step: Callable[..., Any] = vars(module)[name]

    def enter_and_run(*arguments: Any, **options: Any) -> Any:
        trap.enter(stage)
        return step(*arguments, **options)

    return enter_and_run


def _prepare(trap: Trap, unit_entries: int, options: dict[str, Any]) -> None:
    """A run of prepare; the stages of this process are told apart by its steps."""
    replaced: dict[str, object] = {
        "UNIT_ENTRIES": unit_entries,
        "read_file": TrappedRead(trap),
        "Journal": lambda *of_store: TrappedJournal(*of_store, trap=trap),
        "convert_units": _entering(trap, prepare, "waiting", "convert_units"),
        "merge": _entering(trap, prepare, "merging", "merge"),
        "finish": _entering(trap, prepare, "finishing", "finish"),
    }
    vars(prepare).update(replaced)
    trap.enter("listing")
    prepare.prepare_store(labels=None, **options)
    trap.leave()


def _repair(trap: Trap, store: Path, sources: list[str]) -> None:
    """A repair."""
    replaced: dict[str, object] = {
        "find_damage": _entering(trap, repair, "finding", "find_damage"),
        "convert_units": _entering(trap, repair, "waiting", "convert_units"),
        "_put_back": _entering(trap, repair, "copying", "_put_back"),
    }
    vars(repair).update(replaced)
    repair.repair_store(store, sources)
    trap.leave()


def _pack(trap: Trap, original: str, store: Path) -> None:
    """A pack; one thread writes shards."""
    write = packing._Copy.write

    def write_in_trap(*arguments: Any) -> None:
        trap.enter("copying")
        write(*arguments)
        trap.leave()

    replaced: dict[str, object] = {
        "Journal": lambda *of_store: TrappedJournal(*of_store, trap=trap),
        "_finish": _entering(trap, packing, "finishing", "_finish"),
    }
    vars(packing).update(replaced)
    setattr(packing._Copy, "write", write_in_trap)  # noqa: B010  a frozen class
    trap.enter("reading")
    packing.pack_store(Path(original), store, workers=1)
    trap.leave()


class _ForkedServer(ForkServer):
    """A server that has imported all, because it is a fork of the run itself."""

    def _launch(self, control: socket.socket) -> Any:
        ours = self._control
        pid = os.fork()
        if pid == 0:
            sys.setprofile(None)
            assert ours is not None
            ours.close()
            fork_server.serve(control.fileno(), __name__, "serve_units")
            os._exit(0)
        return _Child(pid)


class _Child:
    """What `ForkServer` calls of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def poll(self) -> None:
        return None

    def wait(self, _timeout_s: float = 0) -> None:
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def kill(self) -> None:
        pass


def serve() -> None:
    """Fork a run for each line of stdin; print how it ended."""
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _run(order)
                status = 0
            finally:
                if status:
                    traceback.print_exc()
                os._exit(status)
        print(os.waitpid(pid, 0)[1], flush=True)  # noqa: T201  the answer


def _run(order: dict[str, Any]) -> None:
    vars(pool)["_server"] = _ForkedServer(serve_units)
    stage, event, delay_s = order.pop("trap")
    trap = Trap(stage, event, delay_s, os.getpid(), Path(order.pop("traces")))
    order["store"] = Path(order["store"])
    # Looks at the workers would be more events the slower the machine is.
    vars(pool)["REFRESH_S"] = RUN_S
    if "unit_entries" in order:
        _prepare(trap, order.pop("unit_entries"), order)
    elif "original" in order:
        _pack(trap, **order)
    else:
        _repair(trap, **order)


@dataclass(frozen=True, slots=True)
class Killer:
    """Runs prepare, repairs and pack in processes that may be killed."""

    server: subprocess.Popen[str]

    def count(self, traces: Path, **options: Any) -> dict[str, int]:
        """Run undisturbed; return events of each stage, of the process with fewest."""
        assert self.run(traces, **options) == 0
        counts: dict[str, int] = {}
        for trace in traces.iterdir():
            number = int(trace.read_text())
            counts[trace.stem] = min(number, counts.get(trace.stem, number))
        return counts

    def run(
        self,
        traces: Path,
        *,
        stage: str = "none",
        event: int = 0,
        delay_s: float = 0,
        **options: Any,
    ) -> int:
        """Run, until the trap springs if it is one.

        Args:
            traces: an unused path; made.
            stage: where to die.
            event: of the stage, from 1.
            delay_s: how much later.
            **options: of `prepare_store`, and `unit_entries`; or of `repair_store`; or
                `original` and `store` of `pack_store`.

        Returns:
            The status of the process as `os.waitpid` gives it. Workers may still be
            there.
        """
        traces.mkdir()
        order = options | {"trap": [stage, event, delay_s], "traces": str(traces)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        watchdog = threading.Timer(RUN_S, self.server.kill)
        watchdog.start()
        try:
            self.server.stdin.write(json.dumps(order, default=str) + "\n")
            self.server.stdin.flush()
            return int(self.server.stdout.readline())
        finally:
            watchdog.cancel()


@contextmanager
def killer() -> Iterator[Killer]:
    """Start the server, and end it with the block."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve()"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            yield Killer(server)
        finally:
            server.kill()
