"""Results that other teams published for the data of the RSNA competition of 2019.

They are on other slices than a run of ours: those of the private leaderboard, or those
that the team held out. Numbers have the digits of their source.

Source:
    2nd place: github.com/darraghdog/rsna, README and tables of its experiments.
    Top 30: Burduja et al. 2020, "Accurate and Efficient Intracranial Hemorrhage
    Detection and Subtype Classification in 3D CT Scans", arXiv 2008.00302.
    Without context: the private leaderboard, the best entry of a team that described
    a model of single slices.
    2026 study: github.com/i-pan, MaxViT-Tiny with a bidirectional GRU.
"""

from __future__ import annotations

from dataclasses import dataclass

PRIVATE = "private leaderboard"
VALIDATION = "own validation"


@dataclass(frozen=True, kw_only=True, slots=True)
class TeamResult:
    """One result of another team; None or empty where it is not known."""

    name: str
    network: str = ""
    addition: str
    """How the slices around one are used."""
    size: int | None = None
    """Side of the model's input, in pixels."""
    weighted_loss: float | None = None
    """Weighted log loss, as the competition computes it."""
    auc_any: float | None = None
    """Area under the ROC curve of any, by slice."""
    measured_on: str
    """The slices."""


TEAM_RESULTS = (
    TeamResult(
        name="RSNA 2nd place",
        network="ResNeXt101",
        addition="2 BiLSTMs over features",
        size=480,
        weighted_loss=0.04607,
        measured_on=PRIVATE,
    ),
    *(
        TeamResult(
            name="RSNA 2nd place",
            network="ResNeXt101",
            addition=addition,
            size=size,
            weighted_loss=loss,
            measured_on=VALIDATION,
        )
        for size, addition, loss in (
            (384, "2 BiLSTMs over features", 0.05780),
            (384, "smoothing along z", 0.06336),
            (256, "2 BiLSTMs over features", 0.06119),
            (256, "smoothing along z", 0.06489),
        )
    ),
    TeamResult(
        name="RSNA top 30",
        addition="BiLSTM over features",
        size=256,
        weighted_loss=0.04989,
        measured_on=PRIVATE,
    ),
    TeamResult(
        name="best without context",
        addition="single slices",
        weighted_loss=0.05517,
        measured_on=PRIVATE,
    ),
    *(
        TeamResult(
            name="2026 study",
            network="MaxViT-Tiny",
            addition=addition,
            size=512,
            auc_any=auc,
            measured_on="own held-out patients",
        )
        for addition, auc in (
            ("3 slices x 3 windows", 0.9808),
            ("the same, BiGRU; epidural falls", 0.9828),
        )
    ),
)
"""By team, its own order."""
