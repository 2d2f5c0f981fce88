"""The patients that a model's weights were trained on.

Figures of such patients look better than the model is. So every checkpoint carries the
list of them, and the list goes where the weights go:

1. It has the patients of the run's training slices, and those of the weights that the
   run started from, and so on along a chain of runs.
2. Ids are those of the store. Where a store keeps plain ids, the list has hashes of
   them, so that a checkpoint names nobody.
3. Ids can be compared if both stores keep plain ids, or hash them with the same key.
   Otherwise it is unknown whether a patient was trained on.
4. Weights of a file that has no such list make every patient unknown that is not in
   the list, unless the file holds a layer for ImageNet's 1,000 classes.

Shape letters: N slices of a store.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from ichfast.errors import ModelError, RecipeError
from ichfast.models.weights import read_weights_file, tensors_of
from ichfast.prepare.pseudonyms import HASH_DIGITS
from ichfast.recipes.settings import from_dict, to_dict
from ichfast.store.store import Store
from ichfast.store.tables import patients_N
from ichfast.training.checkpoint import PATIENTS

IMAGENET_CLASSES = 1000
"""Rows of the last layer in a file of ImageNet weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPatients:
    """The patients that a model's weights were trained on."""

    ids: dict[str, tuple[str, ...]]
    """The patients, sorted, by how their stores name patients (`plan["ids"]`)."""

    is_complete: bool
    """False if weights came from a file that does not name its patients."""

    def __or__(self, other: TrainingPatients) -> TrainingPatients:
        return TrainingPatients(
            ids={
                kind: tuple(sorted({*self.ids.get(kind, ()), *other.ids.get(kind, ())}))
                for kind in sorted(self.ids.keys() | other.ids.keys())
            },
            is_complete=self.is_complete and other.is_complete,
        )

    def trained_on_N(self, store: Store) -> npt.NDArray[np.float64]:
        """Find the slices of a store whose patient is one of these.

        Returns:
            Shape (N,): 1 or 0, NaN where that is not known.
        """
        kind, ids_N = _ids_kind(store), pd.Series(_patient_ids_N(store))
        found_N = ids_N.isin(self.ids.get(kind, ())).to_numpy(np.float64)
        if not self.is_complete or self.ids.keys() - {kind}:
            found_N[found_N == 0] = np.nan
        found_N[ids_N.to_numpy() == ""] = np.nan
        return found_N

    def to_text(self) -> str:
        """Format as JSON, for a checkpoint."""
        return json.dumps(to_dict(self))


NOBODY = TrainingPatients(ids={}, is_complete=True)
"""No patient: for random weights, and those of ImageNet."""


def patients_from_text(text: str) -> TrainingPatients:
    """Parse the text of `TrainingPatients.to_text`.

    Raises:
        RecipeError: it is something else.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{PATIENTS} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{PATIENTS}: expected a list by kind, found {found!r:.40}")
    return from_dict(TrainingPatients, found)


def patients_of_slices(
    store: Store, slices_M: npt.NDArray[np.int64]
) -> TrainingPatients:
    """The patients of some slices.

    Args:
        store: the store.
        slices_M: positions in it, shape (M,).
    """
    patients = set(_patient_ids_N(store)[slices_M]) - {""}
    return TrainingPatients(
        ids={_ids_kind(store): tuple(sorted(patients))}, is_complete=True
    )


def patients_of_weights(path: Path) -> TrainingPatients:
    """The patients that the weights in a file were trained on.

    Args:
        path: a checkpoint of ichfast, or any file that `models.weights` reads.

    Raises:
        ModelError: the file cannot be read, or its list of patients is damaged.
    """
    content: Any = read_weights_file(path)
    if isinstance(content, dict) and isinstance(content.get(PATIENTS), str):
        try:
            return patients_from_text(content[PATIENTS])
        except RecipeError as error:
            raise ModelError(f"{path} is damaged: {error}") from error
    if any(map(_has_imagenet_rows, tensors_of(content, path).values())):
        return NOBODY
    return replace(NOBODY, is_complete=False)


def _has_imagenet_rows(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and len(tensor) == IMAGENET_CLASSES


def _ids_kind(store: Store) -> str:
    """How a store names patients; equal for stores whose ids can be compared."""
    return store.header.plan.get("ids", "unknown")


def _patient_ids_N(store: Store) -> npt.NDArray[np.object_]:
    """The patient of each slice, shape (N,), hashed; empty where it is not known."""
    patient_N = patients_N(store.table)
    if not store.header.keep_ids:
        return patient_N
    number_N, plain = pd.factorize(patient_N)
    hashes: npt.NDArray[np.object_] = np.array([_hash(p) for p in plain], dtype=object)
    return hashes[number_N]


def _hash(patient: str) -> str:
    if not patient:
        return ""
    return hashlib.sha256(f"patient {patient}".encode()).hexdigest()[:HASH_DIGITS]
