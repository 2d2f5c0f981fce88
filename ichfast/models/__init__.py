"""The four backbones and their weights."""
