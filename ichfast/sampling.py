"""The ways to choose the slices of a training epoch, by name.

Shape letters: N slices of the split.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ichfast.errors import LoaderError, unknown
from ichfast.labels import CLASSES
from ichfast.loading.sampler import BalancedSampler, Sampler, StudySampler
from ichfast.store.store import Store

SAMPLINGS = ("all", "balanced", "study")
"""``all``: every slice; ``balanced``: as many with hemorrhage as without;
``study``: one slice of each study, rather from its middle."""


def check_sampling(sampling: str) -> None:
    """Refuse a name that is not one of `SAMPLINGS`.

    Raises:
        LoaderError: it is not.
    """
    if sampling not in SAMPLINGS:
        raise LoaderError(unknown("sampling", sampling, SAMPLINGS))


def make_sampler(
    sampling: str, store: Store, slices_N: npt.NDArray[np.int64], **settings: Any
) -> Sampler:
    """Make the sampler of a name.

    Args:
        sampling: a name of `SAMPLINGS`; it matters for training only.
        store: gives labels and studies.
        slices_N: store positions of the split, rising.
        settings: what every `Sampler` takes: ``batch_size``, ``shuffle``, ``seed``,
            ``rank`` and ``world_size``.

    Raises:
        LoaderError: an unknown name, or only one kind of slice to balance.
    """
    check_sampling(sampling)
    if sampling == "balanced" and settings["shuffle"]:
        any_N = store.labels_NK()[slices_N, CLASSES.index("any")]
        return BalancedSampler(
            slices_N=slices_N, has_hemorrhage_N=any_N == 1, **settings
        )
    if sampling == "study" and settings["shuffle"]:
        return StudySampler(
            slices_N=slices_N, study_N=_study_numbers(store)[slices_N], **settings
        )
    return Sampler(slices_N=slices_N, **settings)


def _study_numbers(store: Store) -> npt.NDArray[np.int64]:
    """The number of each stored slice's study; slices are sorted by study."""
    ids = store.table[["patient", "study"]]
    is_first_N = (ids != ids.shift()).any(axis=1)
    return is_first_N.cumsum().to_numpy(np.int64)
