"""`ichfast` as torchrun starts it, but one rank is killed before its first restart."""

from __future__ import annotations

import os
import signal

from ichfast.cli.main import main
from ichfast.training.step import Stepper

LAST_STEP = 4


def die_once() -> None:
    steps = iter(range(1, 1000))
    update = Stepper.update

    def update_or_die(stepper: Stepper, step: int) -> None:
        if next(steps) == LAST_STEP:
            os.kill(os.getpid(), signal.SIGKILL)
        update(stepper, step)

    Stepper.update = update_or_die  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        die_once()
    main()
