"""The stages: one module each, with a function `measure(workload, meter)`."""

from __future__ import annotations

STAGES = (
    *("prepare", "read", "loader", "packed"),
    *("train", "end_to_end", "series", "scale"),
)
"""In the order in which data passes through them; the last measures growth."""
