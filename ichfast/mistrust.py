"""What hostile bytes provoke in a library, as a rejection and nothing else."""

from __future__ import annotations

import warnings
from types import TracebackType

from ichfast.errors import RejectError


class Mistrust:
    """A block in which any failure is the fault of the bytes, and warnings are none.

    Both may quote what the bytes say, so neither gets out. A context manager.

    Args:
        code: of the rejection that a failure becomes.
        part: what is being read.

    Raises:
        RejectError: what was raised in the block, as it was; or `code`, for any other
            failure but Ctrl-C and an exit.
    """

    def __init__(self, code: str, part: str) -> None:
        self._code = code
        self._part = part
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._warnings.__exit__(kind, error, trace)
        # A panic of a decoder in Rust is no Exception.
        passed_on = RejectError, KeyboardInterrupt, SystemExit
        if error is not None and not isinstance(error, passed_on):
            # pydicom takes what it was told while it read an item for an error of its.
            if isinstance(error.__context__, RejectError):
                raise error.__context__ from None
            reason = f"{type(error).__name__} while reading the {self._part}"
            # Without its cause, whose message may quote header values.
            raise RejectError(self._code, reason) from None
