"""The stages: one module each, with a function `measure(workload, meter)`."""

from __future__ import annotations

STAGES = ("prepare", "read", "loader", "train", "end_to_end", "scale")
"""In the order of the data's way; then what grows with its amount."""
