"""Train intracranial-hemorrhage detectors on head CT, fast.

Importing the package loads nothing heavy: each name is loaded when first used.
`__init__.pyi` lists the names, here and in each package.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("ichfast")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
