"""The worst and best slices of each class, to look at.

1. Slices are ranked by |label - probability|, which gives the order of the log loss.
2. The worst slices have the largest gap, with any label.
3. The best slices have the class and the smallest gap. Slices without the class are
   left out, since most of them are easy. So are slices whose label is missing.
4. A study gives at most one slice to a group. Otherwise neighbours would fill it.

Shape letters: N labelled slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ichfast.evaluation.predictions import labels_NK, probs_NK
from ichfast.labels import CLASSES

CASES_A_GROUP = 12
"""Upper limit of slices in a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseGroup:
    """The worst or the best slices of one class, in that order."""

    class_name: str
    is_worst: bool
    rows: pd.DataFrame
    """Rows of the predictions table."""


def choose_cases(labelled: pd.DataFrame) -> Iterator[CaseGroup]:
    """Yield the worst and the best slices of each class, without empty groups.

    Args:
        labelled: rows of a predictions table that have labels.
    """
    gap_NK = np.abs(labels_NK(labelled) - probs_NK(labelled))
    for k, name in enumerate(CLASSES):
        num_known = np.count_nonzero(~np.isnan(gap_NK[:, k]))
        # A missing gap is sorted to the end.
        ranked = labelled.iloc[np.argsort(gap_NK[:, k], kind="stable")[:num_known]]
        worst = _one_a_study(ranked.iloc[::-1])
        positive = ranked[ranked[f"label_{name}"] == 1]
        best = _one_a_study(positive[~positive["slice_id"].isin(worst["slice_id"])])
        for is_worst, rows in ((True, worst), (False, best)):
            if len(rows):
                yield CaseGroup(class_name=name, is_worst=is_worst, rows=rows)


def _one_a_study(ranked: pd.DataFrame) -> pd.DataFrame:
    return ranked.drop_duplicates("study").head(CASES_A_GROUP)
