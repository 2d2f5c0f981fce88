"""Augmentation: what may be drawn, the draws, and the NumPy reference."""
