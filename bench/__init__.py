"""Measurements: every stage of ichfast against its limit and its peers."""
