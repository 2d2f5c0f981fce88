"""Profiling of steps: a trace, and a table of where the time goes.

The parts of a step are always named, for PyTorch's profiler and, on a GPU, for Nsight
Systems (NVTX). `Profile` also traces some steps of a run, undisturbed, and then times
the parts of others. For that it waits for the device after each part, so the parts'
times are exact, but their sum exceeds an undisturbed step in which host and device
overlap.
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
"""Parts of a step: the wait for a batch; its cast and mixup; the network and the
loss; the gradients and their exchange between ranks; optimizer and averaged weights."""

SKIPPED_STEPS, TRACED_STEPS, TIMED_STEPS = 3, 5, 10
"""Numbers of steps that are first skipped, then traced, then timed."""

PROFILED_STEPS = SKIPPED_STEPS + TRACED_STEPS + TIMED_STEPS

TRACE = "trace.json"
"""File in Chrome's trace format; Perfetto and chrome://tracing open it."""

SUMMARY = "profile.txt"
"""File of the table, as `format_summary` lays it out."""


class Spans:
    """Names the parts of a step for profilers.

    Args:
        device: where the run computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Wrap one of `PARTS`."""
        nvtx = torch.cuda.nvtx.range(name) if self._on_cuda else nullcontext()
        with nvtx, record_function(f"ichfast.{name}"):
            yield

    def end_step(self) -> None:
        """End a step."""

    def close(self) -> None:
        """End the run."""


class Profile(Spans):
    """Profiles some steps of a run, and writes `TRACE` and `SUMMARY`.

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
        return SKIPPED_STEPS + TRACED_STEPS <= self._num_steps < PROFILED_STEPS

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Wrap one of `PARTS`; if it is timed, wait for the device at its end."""
        began = time.perf_counter()
        with super().part(name):
            yield
            if self._is_timing:
                self._finish_device()
        self._seconds[name] += self._is_timing * (time.perf_counter() - began)

    def end_step(self) -> None:
        """End a step; begin or end the trace and write the table where due."""
        now = time.perf_counter()
        if self._is_timing:
            self._seconds["step"] += now - self._step_began
        self._num_steps += 1
        self._step_began = now
        if self._num_steps == SKIPPED_STEPS:
            self._begin_trace()
        elif self._num_steps == SKIPPED_STEPS + TRACED_STEPS:
            self._end_trace()
        elif self._num_steps == PROFILED_STEPS:
            self._write_summary()

    def close(self) -> None:
        """End the run and a trace that is under way; warn if it was too short."""
        self._end_trace()
        if self._num_steps < PROFILED_STEPS:
            logger.warning(
                "--profile needs %d steps and this run had %d: %s is not written; "
                "train on more slices or more epochs",
                PROFILED_STEPS,
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
    """Format the times of some steps as a table.

    Args:
        seconds: seconds of each of `PARTS`, and of whole steps under ``step``, added
            up over the steps.
        num_steps: number of steps.
    """
    whole = seconds["step"]
    rows = [(name, seconds[name]) for name in PARTS]
    rows.append(("other", whole - sum(seconds[name] for name in PARTS)))
    rows.append(("step", whole))
    return "\n".join(
        [
            f"time of a step (mean of {num_steps}; the device finishes each part)",
            *(
                f"  {name:<10}{1000 * each / num_steps:10.2f} ms"
                f"{100 * each / whole:7.1f} %"
                for name, each in rows
            ),
        ]
    )
