"""Where the time of a step goes: a trace to look at, and a table to read.

Every part of a step has a name, always: PyTorch's profiler shows it, and on a GPU
Nsight Systems does (NVTX). `Profile` also looks at some steps of a run: first it
traces them undisturbed, then it times the parts of others, for which it waits for
the device after each part. So the parts' times are true, and their sum is more than
an undisturbed step takes wherever host and device would have worked side by side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ichfast.system.files import atomic_path, write_text_atomically

logger = logging.getLogger(__name__)

PARTS = ("wait", "copy", "forward", "backward", "optimizer")
"""Parts of a step: waiting for a batch; its cast and mixup; the network and the
loss; gradients, with their exchange between ranks; optimizer and averaged weights."""

SKIPPED_STEPS, TRACED_STEPS, TIMED_STEPS = 3, 5, 10
"""The steps of a run that are skipped, then traced, then timed."""

TRACE = "trace.json"
"""Chrome's trace format: open it with Perfetto or chrome://tracing."""

SUMMARY = "profile.txt"


class Spans:
    """Names the parts of a step, for whichever profiler looks on."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Wrap one of `PARTS`."""
        nvtx = torch.cuda.nvtx.range(name) if self._on_cuda else nullcontext()
        with nvtx, record_function(f"ichfast.{name}"):
            yield

    def end_step(self) -> None:
        """Note that a step is over."""

    def close(self) -> None:
        """Note that the run is over."""


class Profile(Spans):
    """Looks at some steps of a run, and writes `TRACE` and `SUMMARY`.

    Args:
        device: where the run computes.
        run_dir: where the files go.
    """

    def __init__(self, device: torch.device, run_dir: Path) -> None:
        super().__init__(device)
        self._device = device
        self._run_dir = run_dir
        self._num_steps = 0
        self._trace: profile | None = None
        self._seconds = dict.fromkeys((*PARTS, "step"), 0.0)
        self._step_began = 0.0

    @property
    def _is_timing(self) -> bool:
        first = SKIPPED_STEPS + TRACED_STEPS
        return first <= self._num_steps < first + TIMED_STEPS

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Wrap one of `PARTS`; wait for the device at its end if it is timed."""
        began = time.perf_counter()
        with super().part(name):
            yield
            if self._is_timing:
                self._finish_device()
        self._seconds[name] += self._is_timing * (time.perf_counter() - began)

    def end_step(self) -> None:
        """Note that a step is over, and begin or end what is due."""
        now = time.perf_counter()
        if self._is_timing:
            self._seconds["step"] += now - self._step_began
        self._num_steps += 1
        self._step_began = now
        if self._num_steps == SKIPPED_STEPS:
            self._begin_trace()
        elif self._num_steps == SKIPPED_STEPS + TRACED_STEPS:
            self._end_trace()
        elif self._num_steps == SKIPPED_STEPS + TRACED_STEPS + TIMED_STEPS:
            self._write_summary()

    def close(self) -> None:
        """End a trace that is under way; say what is missing."""
        self._end_trace()
        wanted = SKIPPED_STEPS + TRACED_STEPS + TIMED_STEPS
        if self._num_steps < wanted:
            logger.warning(
                "--profile looks at %d steps and this run had %d: %s is not written; "
                "train on more slices or more epochs",
                wanted,
                self._num_steps,
                self._run_dir / SUMMARY,
            )

    def _begin_trace(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._on_cuda:
            activities.append(ProfilerActivity.CUDA)
        self._trace = profile(activities=activities)
        self._trace.start()

    def _end_trace(self) -> None:
        if self._trace is None:
            return
        self._finish_device()
        self._trace.stop()
        with atomic_path(self._run_dir / TRACE) as temporary:
            self._trace.export_chrome_trace(str(temporary))
        self._trace = None
        self._step_began = time.perf_counter()

    def _write_summary(self) -> None:
        text = format_summary(self._seconds, TIMED_STEPS)
        write_text_atomically(self._run_dir / SUMMARY, text + "\n")
        logger.info("%s", text)

    def _finish_device(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize(self._device)


def format_summary(seconds: Mapping[str, float], num_steps: int) -> str:
    """Lay out where the time of some steps went.

    Args:
        seconds: of each of `PARTS`, and of whole steps under ``step``; altogether.
        num_steps: how many steps that were.
    """
    whole = seconds["step"]
    rows = [(name, seconds[name]) for name in PARTS]
    rows.append(("other", whole - sum(seconds[name] for name in PARTS)))
    rows.append(("step", whole))
    return "\n".join(
        [
            f"where a step's time goes (mean of {num_steps}; each part waited for)",
            *(
                f"  {name:<10}{1000 * each / num_steps:10.2f} ms"
                f"{100 * each / whole:7.1f} %"
                for name, each in rows
            ),
        ]
    )
