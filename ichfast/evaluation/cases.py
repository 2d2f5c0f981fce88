"""Which slices of a class are worth a look: those it does worst on, and best.

1. Slices are ranked by |label - probability|, which ranks them as the log loss does.
2. Worst are the slices with the largest gap, whatever their label.
3. Best are labelled slices with the smallest gap: of those without the class, most
   are easy.
4. A study gives at most one slice to a group, else neighbours would fill it.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseGroup:
    """Slices of one class, the most telling first."""

    class_name: str
    is_worst: bool
    rows: pd.DataFrame
    """Rows of the predictions."""


def choose_cases(labelled: pd.DataFrame) -> Iterator[CaseGroup]:
    """Give the worst and the best slices of each class, leaving out empty groups.

    Args:
        labelled: rows of a predictions table that have labels.
    """
    gap_NK = np.abs(labels_NK(labelled) - probs_NK(labelled))
    for k, name in enumerate(CLASSES):
        ranked = labelled.iloc[np.argsort(gap_NK[:, k], kind="stable")]
        worst = _one_a_study(ranked.iloc[::-1])
        positive = ranked[ranked[f"label_{name}"] == 1]
        best = _one_a_study(positive[~positive["slice_id"].isin(worst["slice_id"])])
        for is_worst, rows in ((True, worst), (False, best)):
            if len(rows):
                yield CaseGroup(class_name=name, is_worst=is_worst, rows=rows)


def _one_a_study(ranked: pd.DataFrame) -> pd.DataFrame:
    return ranked.drop_duplicates("study").head(CASES_A_GROUP)
