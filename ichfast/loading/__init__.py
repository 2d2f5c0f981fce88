"""A store to batches, through NVIDIA DALI."""
