"""What went wrong inside DALI, out of all that it reports."""

from __future__ import annotations

import re

from ichfast.errors import first_line

_REASON = re.compile(
    r"(?:Critical error in pipeline:\s*)*(.*?)\s*"
    r"(?:\n\n|\nC\+\+ context|\nStacktrace|\nCurrent pipeline object|$)",
    re.DOTALL,
)
"""What went wrong, between what DALI says of every failure."""


def failure_reason(error: Exception) -> str:
    """What DALI's error says went wrong, in one line.

    DALI names the operator and quotes the graph; behind ``encountered:`` comes the
    reason, over a few lines at times, then where in its own source.
    """
    found = _REASON.match(str(error).rpartition("encountered:")[2].strip())
    reason = " ".join(found[1].split()) if found else ""
    return reason or first_line(error)
