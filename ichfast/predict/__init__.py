"""Trained runs to predictions and submissions."""
