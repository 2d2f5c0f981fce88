"""The RSNA label csv as an (N, 6) array in one fixed class order.

Two forms are read: long, as Kaggle gives it (``ID_xxxxxxxxx_subtype,Label``),
and wide, one row a slice with a column for each class.

Shape letters: N slices, K classes.
"""

from __future__ import annotations

CLASSES = (
    "any",
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)
"""The six classes, in the order of every array with a K axis."""
