"""Train intracranial-hemorrhage detectors on head CT, fast.

Importing the package loads nothing heavy. Each module holds one concept; the
README lists them in reading order.
"""

from importlib.metadata import version

__version__ = version("ichfast")
