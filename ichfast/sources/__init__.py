"""Bytes out of folders, archives and URLs."""
