"""Train intracranial-hemorrhage detectors on head CT, fast.

Importing the package loads nothing heavy: each name is loaded when first used.
`__init__.pyi` lists the names, here and in each package.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

try:
    __version__ = version("ichfast")
except PackageNotFoundError as error:
    raise ImportError(
        "ichfast is not installed: run `python3 -m pip install -e .` in its folder; "
        "without a network, add --no-deps --no-build-isolation"
    ) from error
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
