"""What a machine has for ichfast, what is wrong with it, and a self-test."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
