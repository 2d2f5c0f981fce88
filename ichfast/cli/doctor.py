"""The `doctor` command."""

from __future__ import annotations

from pathlib import Path

import click

from ichfast.cli.options import STORE, print_result, print_status


@click.command()
@STORE
def doctor(store: Path) -> None:
    """Show what this machine has, what is wrong, and what to type next.

    Tests the path from DICOM files to batches on a small synthetic store, on the GPU if
    there is one, against the NumPy reference. Takes some seconds. Exits with status 1
    if training would fail, or if a GPU would stay unused. CUDA_VISIBLE_DEVICES= hides
    GPUs on purpose.
    """
    from ichfast.doctor.checks import find_problems, next_command
    from ichfast.doctor.machine import examine_machine
    from ichfast.doctor.screen import format_machine
    from ichfast.errors import DeviceError

    print_status("examining this machine; this takes some seconds")
    machine = examine_machine(store)
    problems = find_problems(machine)
    print_status(format_machine(machine, problems))
    num_errors = sum(problem.is_error for problem in problems)
    print_result(
        {
            "device": machine.tested_on,
            "gpus": [gpu.name for gpu in machine.gpus],
            "errors": num_errors,
            "problems": [problem.text for problem in problems],
            "next": next_command(machine),
        }
    )
    if num_errors:
        raise DeviceError(f"{num_errors} error(s): see the lines that begin with ERROR")
