"""Which slices of a store train and which validate.

Only slices with all six labels take part. A slice without a patient id counts as
a patient of its own study.

Shape letters: N slices of the store, of the training or of the validation part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ichfast.errors import FoldError
from ichfast.loading.splits import FoldConfig, patient_folds, slice_folds
from ichfast.store.store import Store
from ichfast.store.tables import patients_N


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Store positions, in store order."""

    fold_N: npt.NDArray[np.int8]
    """The fold of each slice of the store, -1 where it has no labels."""

    train_N: npt.NDArray[np.int64]
    valid_N: npt.NDArray[np.int64]

    def counts(self, store: Store) -> dict[str, int]:
        """Slices and patients of both parts."""
        patients = store.table["patient"].to_numpy(dtype=object)
        return {
            "train_slices": len(self.train_N),
            "train_patients": len(set(patients[self.train_N])),
            "valid_slices": len(self.valid_N),
            "valid_patients": len(set(patients[self.valid_N])),
        }


def split_slices(store: Store, folds: FoldConfig, *, limit: int | None = None) -> Split:
    """Deal a store's labelled slices into folds, and choose the one that validates.

    Args:
        store: with labels.
        folds: kind, number, seed and the fold that validates.
        limit: keep so many training slices, and a quarter as many for validation,
            spread evenly; None keeps all.

    Raises:
        FoldError: no labels, too few patients, or an empty part.
    """
    labels_NK = store.labels_NK()
    labelled_N = np.flatnonzero(~np.isnan(labels_NK).any(axis=1))
    if labelled_N.size == 0:
        raise FoldError(
            f"{store.path} has no labels; run `ichfast prepare SOURCE... --labels CSV` "
            "with another --store"
        )
    if folds.kind == "patient":
        dealt_N = patient_folds(
            patients_N(store.table)[labelled_N],
            labels_NK[labelled_N],
            num_folds=folds.num_folds,
            seed=folds.seed,
        )
    else:
        dealt_N = slice_folds(
            labels_NK[labelled_N], num_folds=folds.num_folds, seed=folds.seed
        )
    fold_N = np.full(len(store), -1, dtype=np.int8)
    fold_N[labelled_N] = dealt_N
    valid_N = np.flatnonzero(fold_N == folds.fold)
    train_N = np.flatnonzero((fold_N >= 0) & (fold_N != folds.fold))
    if limit is not None:
        train_N = _evenly(train_N, limit)
        valid_N = _evenly(valid_N, max(1, limit // 4))
    for part, slices_N in (("train on", train_N), ("validate with", valid_N)):
        if slices_N.size == 0:
            raise FoldError(
                f"no slices to {part} in fold {folds.fold} of {folds.num_folds}; "
                "choose another --fold, or fewer with --set folds.num_folds=2"
            )
    return Split(fold_N=fold_N, train_N=train_N, valid_N=valid_N)


def _evenly(slices_N: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    if count >= slices_N.size:
        return slices_N
    return slices_N[np.linspace(0, slices_N.size - 1, count).astype(int)]
