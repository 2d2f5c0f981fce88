"""Tests, one file a module; `contracts.py` holds what all loaders promise."""
