"""Commands in forked processes, which may be killed or have no space to write.

A server process has imported everything and forks each command, so a command costs
what it computes. What `export` and `report` compute is remembered from the server's own
run of them: only their files are written again. `predict` computes each time.

An event is any call of Python that opens, makes, renames or removes something in the
folders that are watched, as `sys.audit` reports it. A command is killed just before
one, so it dies where it is told to, on any machine.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_S = 120.0
"""The server is killed when a command takes longer."""

EVENTS = ("open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir")
"""Audit events of `Server.run`; the first argument of each is a path."""

REMEMBERED = {
    "ichfast.export.export": ("trace", "_pt2"),
    "ichfast.report.page": (
        *("compute_results", "result_charts", "curve_charts", "training_charts"),
        "make_cards",
    ),
}
"""Functions, by module, whose first result is returned from then on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    status: int
    """Its exit status, or minus the number of the signal that killed it."""

    events: int
    """Number of events; 0 if it was killed."""

    output: str
    """Its stdout and stderr."""

    @property
    def error(self) -> str:
        """The last line of its output."""
        return self.output.strip().splitlines()[-1]


def serve() -> None:
    """Run a command for each line of stdin; print how it ended."""
    import nvidia.dali  # noqa: F401
    import timm  # noqa: F401

    from ichfast import cli, evaluation, export, predict, report, runs, series
    from ichfast.report.charts import series_models  # noqa: F401
    from ichfast.runs import event_file  # noqa: F401
    from tests.conftest import add_tiny_arch

    add_tiny_arch()
    for package in (cli, evaluation, export, predict, report, runs, series):
        dir(package)
    for line in sys.stdin:
        order = json.loads(line)
        if order.pop("remember"):
            _remember()
            _main(order["arguments"])
            print(0, flush=True)  # noqa: T201  the answer
            continue
        pid = os.fork()
        if pid == 0:
            status = _command(**order)
            atexit._run_exitfuncs()
            os._exit(status)  # without taking down torch and DALI, which takes time
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


def _remember() -> None:
    import importlib

    for module, names in REMEMBERED.items():
        functions = vars(importlib.import_module(module))
        functions.update({name: _once(functions[name]) for name in names})


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    results: list[Any] = []

    def remembered(*arguments: Any, **options: Any) -> Any:
        if not results:
            results.append(function(*arguments, **options))
        return results[0]

    return remembered


def _command(
    arguments: Sequence[str],
    folder: str,
    traces: str,
    watched: Sequence[str],
    die_at: int,
    max_bytes: int,
    dies_of_size: bool,
) -> int:
    log = os.open(f"{traces}/output", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    os.environ["TMPDIR"] = f"{folder}/temporary"
    tempfile.tempdir = None
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if dies_of_size:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    count = _count_events(watched, die_at)
    status = _main(arguments)
    Path(traces, "events").write_text(str(count()), "utf-8")
    return status


def _main(arguments: Sequence[str]) -> int:
    """Run the command line; its exit status."""
    from ichfast.cli.main import main

    sys.argv = ["ichfast", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001  this process ends
        traceback.print_exc()
    return 99


def _count_events(watched: Sequence[str], die_at: int) -> Callable[[], int]:
    seen: list[str] = []
    is_counting = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not is_counting:
            return
        if not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100  no recursion
        if path.startswith(tuple(watched)):
            seen.append(event)
            if len(seen) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def count() -> int:
        nonlocal is_counting
        is_counting = False
        return len(seen)

    sys.addaudithook(hook)
    return count


@dataclass(frozen=True, slots=True)
class Server:
    """Runs commands in processes that may be killed."""

    process: subprocess.Popen[str]
    traces: Path
    """A folder for what a command prints."""

    def remember(self, *arguments: str | Path) -> None:
        """Run a command in the server, and remember what it computes."""
        assert self._answer({"remember": True, "arguments": arguments}) == 0

    def run(
        self,
        folder: Path,
        *arguments: str | Path,
        watched: Sequence[Path] = (),
        die_at: int = 0,
        max_bytes: int = 0,
        dies_of_size: bool = False,
    ) -> Outcome:
        """Run a command.

        Args:
            folder: the working directory; its folder ``temporary`` is TMPDIR.
            *arguments: the command line after ``ichfast``.
            watched: folders and files whose events count.
            die_at: number of the event before which it is killed, from 1; 0: none.
            max_bytes: upper limit of the size of a file (EFBIG); 0: none.
            dies_of_size: a larger file kills it in the middle of writing.
        """
        (self.traces / "events").unlink(missing_ok=True)
        status = self._answer(
            {
                "remember": False,
                "arguments": arguments,
                "folder": folder,
                "traces": self.traces,
                "watched": watched,
                "die_at": die_at,
                "max_bytes": max_bytes,
                "dies_of_size": dies_of_size,
            }
        )
        events = self.traces / "events"
        return Outcome(
            status,
            int(events.read_text("utf-8")) if events.exists() else 0,
            (self.traces / "output").read_text("utf-8"),
        )

    def _answer(self, order: dict[str, Any]) -> int:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        watchdog = threading.Timer(COMMAND_S, self.process.kill)
        watchdog.start()
        try:
            stdin.write(json.dumps(order, default=str) + "\n")
            stdin.flush()
            while True:  # a remembered command prints its result
                line = stdout.readline()
                if not line.startswith("{"):
                    return int(line)
        finally:
            watchdog.cancel()


@contextmanager
def command_server(traces: Path) -> Iterator[Server]:
    """Start the server, and end it with the block.

    Args:
        traces: an empty folder.
    """
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve()"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        | {"PYTHONWARNINGS": "ignore"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            yield Server(server, traces)
        finally:
            server.kill()
