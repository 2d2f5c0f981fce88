"""A model of the bottleneck when many GPUs train."""
