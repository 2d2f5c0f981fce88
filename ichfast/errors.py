"""The exceptions ichfast raises on purpose.

Their tree::

    IchfastError             anything a user can act on; the command line shows
     │                       its one line and exits with status 1
     ├─ SourceError          a folder or archive of DICOM that cannot be read
     ├─ RejectError          one DICOM file that cannot become a slice, with a code
     ├─ StoreError           a store that is missing, damaged or of another version
     ├─ LabelError           a label csv that is malformed or contradicts itself
     ├─ FoldError            folds that cannot be made or are empty
     ├─ WindowError          a CT window without a usable center or width
     ├─ LoaderError          a loader that cannot be built, or failed while reading
     ├─ RecipeError          an unknown recipe or setting, or a value out of range
     ├─ ModelError           an unknown architecture, or weights that do not fit
     ├─ DeviceError          a requested device that cannot be used
     ├─ CheckpointError      a checkpoint that is missing, damaged or does not fit
     ├─ TrainError           training that cannot start or had to stop
     ├─ InterruptionError    stopped by a signal; what was done is kept
     ├─ PredictionError      predictions that are missing, damaged or do not fit
     └─ SubmissionError      predictions that must not be submitted

Each message names what failed and where, what was found and expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IchfastError(Exception):
    """Base of all exceptions that ichfast raises on purpose.

    Example:
        >>> import ichfast
        >>> try:
        ...     ichfast.Store("no-such-folder")
        ... except ichfast.IchfastError as error:
        ...     print(error)
        no-such-folder is not a slice store...
    """


class SourceError(IchfastError):
    """A source of DICOM files is missing, unreadable or empty."""


KIND_CODES = frozenset(("derived", "localizer", "not-axial", "not-ct", "not-hu"))
"""Reject codes of sound images that are no axial CT slice in HU."""

SOUND_CODES = KIND_CODES | {"not-selected"}
"""Reject codes of sound files, which do not count towards ``--max-rejected``."""

REJECT_CODES = SOUND_CODES | frozenset(
    (
        *("empty", "not-dicom", "bad-header", "no-pixels"),
        *("colour", "too-large", "truncated-pixels", "no-decoder", "decoder-error"),
        *("unreadable-file", "unreadable-archive", "timeout"),  # from ichfast.sources
        *("duplicate-conflict", "decoder-crash"),  # from ichfast.prepare; a timeout too
    )
)
"""Every reason in ``rejected.csv``."""


def check_kind_codes(codes: Iterable[str]) -> frozenset[str]:
    """Check the codes of images that are stored although they are no slices.

    Returns:
        The codes, each once.

    Raises:
        ValueError: one is not in `KIND_CODES`.
    """
    checked = frozenset(codes)
    for code in sorted(checked - KIND_CODES):
        raise ValueError(unknown("code to accept", code, sorted(KIND_CODES)))
    return checked


class RejectError(IchfastError):
    """One file cannot become a slice.

    Args:
        code: one of `REJECT_CODES`.
        detail: what was found and what was expected, without patient data.

    Raises:
        ValueError: the code is not one of them.
    """

    def __init__(self, code: str, detail: str) -> None:
        if code not in REJECT_CODES:
            raise ValueError(unknown("reject code", code, sorted(REJECT_CODES)))
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail

    def __reduce__(self) -> tuple[type[RejectError], tuple[str, str]]:
        return type(self), (self.code, self.detail)


class StoreError(IchfastError):
    """A store is missing, damaged, of another version, or asked beyond its end."""


class LabelError(IchfastError):
    """A label csv is malformed or contradicts itself."""


class FoldError(IchfastError):
    """Folds cannot be made from these slices, or one of them is empty."""


class WindowError(IchfastError):
    """A CT window without a usable center or width."""


class LoaderError(IchfastError):
    """A loader cannot be built, or failed while reading."""


class RecipeError(IchfastError):
    """An unknown recipe or setting, or a value out of its range."""


class ModelError(IchfastError):
    """An unknown architecture, or weights that do not fit it."""


class DeviceError(IchfastError):
    """A requested device that this machine cannot use."""


class CheckpointError(IchfastError):
    """A checkpoint is missing, damaged or made for something else."""


class TrainError(IchfastError):
    """Training cannot start, or had to stop."""


class InterruptionError(IchfastError):
    """Stopped by a signal. What was done is kept, and can be continued."""


class PredictionError(IchfastError):
    """A predictions file is missing, damaged or lacks what is needed."""


class SubmissionError(IchfastError):
    """Predictions that must not be submitted as they are."""


def first_line(error: Exception) -> str:
    """Shorten the message of another library's error to one line; its name if empty."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    if not lines:
        return name
    # The message of a LookupError is only the key.
    return f"{name}: {lines[0]}" if isinstance(error, LookupError) else lines[0]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Make the message for an unknown name, with the nearest name and all names.

    Args:
        what: kind of the name.
        name: the unknown name.
        known: all names of this kind.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known are {', '.join(known)}"
