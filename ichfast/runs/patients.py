"""The patients that a model's weights were trained on.

Figures of such patients look better than the model is. So every checkpoint carries the
list of them, and the list goes where the weights go:

1. It has the patients of the run's training slices, and those of the weights that the
   run started from, and so on along a chain of runs.
2. Ids are those of the store. Where a store keeps plain ids, the list has hashes of
   them, so that a checkpoint names nobody.
3. Ids can be compared if both stores keep plain ids, or hash them with the same key.
   Otherwise it is unknown whether a patient was trained on.
4. A run whose folds are of studies (`folds.group`) lists its studies as patients, which
   are compared with studies.
5. Weights of a file that has no such list make every patient unknown that is not in
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
from ichfast.store.tables import units_N
from ichfast.training.checkpoint import PATIENTS

IMAGENET_CLASSES = 1000
"""Rows of the last layer in a file of ImageNet weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPatients:
    """The patients that a model's weights were trained on."""

    ids: dict[str, tuple[str, ...]]
    """The patients, sorted, by how their stores name patients (`plan["ids"]`). Studies
    that count as patients have a name of their own."""

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
        found_N = np.zeros(len(store))
        kinds = {unit: _ids_kind(store, unit) for unit in ("patient", "study")}
        for unit, kind in kinds.items():
            ids_N = pd.Series(_ids_N(store, unit))
            found_N[ids_N.isin(self.ids.get(kind, ()))] = 1.0
            if unit == "patient" or kind in self.ids:
                found_N[ids_N == ""] = np.nan
        if not self.is_complete or self.ids.keys() - set(kinds.values()):
            found_N[found_N == 0] = np.nan
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
    store: Store, slices_M: npt.NDArray[np.int64], *, unit: str = "patient"
) -> TrainingPatients:
    """The patients of some slices.

    Args:
        store: the store.
        slices_M: positions in it, shape (M,).
        unit: ``study`` if a study counts as a patient; else ``patient``.
    """
    patients = set(_ids_N(store, unit)[slices_M]) - {""}
    return TrainingPatients(
        ids={_ids_kind(store, unit): tuple(sorted(patients))}, is_complete=True
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


def _ids_kind(store: Store, unit: str) -> str:
    """How a store names patients; equal for stores whose ids can be compared."""
    kind = store.header.plan.get("ids", "unknown")
    return kind if unit == "patient" else f"{kind}, by {unit}"


def _ids_N(store: Store, unit: str) -> npt.NDArray[np.object_]:
    """The patient, or study, of each slice, hashed; empty where it is not known."""
    id_N = units_N(store.table, unit)
    if not store.header.keep_ids:
        return id_N
    number_N, plain = pd.factorize(id_N)
    hashes: npt.NDArray[np.object_] = np.array(
        [_hash(unit, each) for each in plain], dtype=object
    )
    return hashes[number_N]


def _hash(unit: str, plain: str) -> str:
    if not plain:
        return ""
    return hashlib.sha256(f"{unit} {plain}".encode()).hexdigest()[:HASH_DIGITS]
