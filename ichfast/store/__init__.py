"""The on-disk format: read, write, verify."""
