"""A trained run, opened for use: its record, and its model with the best weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ichfast.errors import CheckpointError, PredictionError, first_line
from ichfast.models.build import build_model
from ichfast.runs.record import RunRecord, read_record
from ichfast.store.store import Store
from ichfast.training.checkpoint import BEST, load_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """A run with a finished epoch."""

    path: Path
    record: RunRecord

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.resolve().name

    def trained_on(self, store: Store) -> bool:
        """Whether the run was trained on this store, even if it was moved."""
        return dict(store.header.plan) == self.record.store_plan

    def load_model(self, device: torch.device) -> nn.Module:
        """Build the model with the weights of its best epoch, in evaluation mode.

        Raises:
            CheckpointError: the checkpoint is damaged, or does not fit the settings.
        """
        state = load_checkpoint(self.path / BEST)
        recipe = self.record.recipe
        model = build_model(
            recipe.model.arch, in_chans=recipe.data.num_channels, head=recipe.model.head
        )
        try:
            model.load_state_dict(state["model"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.path / BEST} does not fit the run's settings: "
                f"{first_line(error)}; train again"
            ) from error
        return model.to(device).eval()


def open_run(path: Path) -> TrainedRun:
    """Open a run's folder.

    Raises:
        CheckpointError: there is no run, or no epoch of it is finished.
        RecipeError: the run's record is damaged.
    """
    record = read_record(path)
    if not (path / BEST).is_file():
        raise CheckpointError(
            f"{path} has no {BEST}: no epoch is finished; continue it with "
            "`ichfast train --resume`"
        )
    return TrainedRun(path=path, record=record)


def open_ensemble(paths: Sequence[Path]) -> list[TrainedRun]:
    """Open runs whose predictions are averaged.

    Raises:
        CheckpointError: there is no run, or no epoch of one is finished.
        PredictionError: the same run twice, or runs of different sizes.
        RecipeError: the record of a run is damaged.
    """
    runs = [open_run(path) for path in paths]
    counts = Counter(run.path.resolve() for run in runs)
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated:
        raise PredictionError(f"{repeated[0]} is named twice; name each run once")
    sizes = {run.record.recipe.data.size for run in runs}
    if len(sizes) > 1:
        shown = ", ".join(
            f"{run.path} sees {run.record.recipe.data.size}" for run in runs
        )
        raise PredictionError(
            f"the runs of an ensemble see slices at one size, in pixels: {shown}; name "
            "runs of one size, and predict the others on their own"
        )
    return runs
