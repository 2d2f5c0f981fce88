"""One slice packed without loss in a record: a C library, and its NumPy reference."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
