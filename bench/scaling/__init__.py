"""A model of where the bottleneck lies with many GPUs."""
