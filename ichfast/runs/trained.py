"""A trained run, opened for use: its record, patients and best weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ichfast.errors import (
    CheckpointError,
    PredictionError,
    RecipeError,
    StoreError,
    first_line,
)
from ichfast.loading.splits import ID_FILES, Split, in_run_folder, split_slices
from ichfast.models.build import build_model
from ichfast.runs.patients import TrainingPatients, patients_from_text
from ichfast.runs.record import RunRecord, read_record
from ichfast.store.header import read_header
from ichfast.store.store import Store
from ichfast.system.files import CHUNK_BYTES
from ichfast.training.checkpoint import BEST, PATIENTS, SETTINGS, load_checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """A run with a finished epoch."""

    path: Path
    record: RunRecord
    patients: TrainingPatients
    """All patients that the weights were trained on, also in runs before."""

    weights: dict[str, Tensor]
    """State of the model in the best epoch, on the CPU."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.resolve().name

    @property
    def digest(self) -> str:
        """Hex SHA-256 of its checkpoint."""
        return checkpoint_digest(self.path)

    def trained_on(self, store: Store) -> bool:
        """Whether the run was trained on this store, even if it was moved."""
        return store.header.digest == self.record.store_digest

    def trained_before(self, store: Store) -> bool:
        """Whether this store grew, by appends, from that of the run."""
        return self.record.store_digest in store.header.lineage

    def find_store(self) -> Path:
        """Find the store that the run was trained on, also after a move or an append.

        Raises:
            StoreError: it is not there, cannot be read, or holds something else.
        """
        return find_store(self.path, self.record.store, self.record.store_digest)

    def split(self, store: Store) -> Split:
        """Split the store that it was trained on, as it was split then.

        Raises:
            FoldError: a copy of a file of ids cannot be read.
            PredictionError: a copy of a file of ids was edited.
        """
        split = split_slices(store, in_run_folder(self.record.recipe.folds, self.path))
        for setting, file in split.files.items():
            if self.record.id_files.get(setting) != file.digest:
                raise PredictionError(
                    f"{self.path / ID_FILES[setting]} was edited; copy back the file "
                    "as it was, or train again"
                )
        return split

    def load_model(self, device: torch.device) -> nn.Module:
        """Build the model with the weights of its best epoch, in evaluation mode.

        Raises:
            CheckpointError: the checkpoint does not fit the settings.
        """
        recipe = self.record.recipe
        model = build_model(
            recipe.model.arch,
            in_chans=recipe.data.num_channels,
            size=recipe.data.size,
            head=recipe.model.head,
        )
        try:
            model.load_state_dict(self.weights)
        except (RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.path / BEST} does not fit the run's settings: "
                f"{first_line(error)}; train again"
            ) from error
        return model.to(device).eval()


def checkpoint_digest(run_path: Path) -> str:
    """Hex SHA-256 of the best checkpoint in a run's folder."""
    sha256 = hashlib.sha256()
    with (run_path / BEST).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha256.update(chunk)
    return sha256.hexdigest()


def find_store(run_path: Path, named: str, digest: str) -> Path:
    """Find the store that a run was trained on, also after a move or an append.

    It is looked for where it was, then by its name next to the run, next to the run's
    parent folder, and in the current folder.

    Args:
        run_path: the run's folder, or another one that was made from the store.
        named: path of the store when the run was trained.
        digest: of the store then.

    Raises:
        StoreError: it is not there, cannot be read, or holds something else.
    """
    folders = (*run_path.absolute().parents[:2], Path.cwd())
    name = Path(named).name
    for path in (Path(named), *(folder / name for folder in folders)):
        try:
            header = read_header(path)
        except StoreError:
            continue
        if digest in (header.digest, *header.lineage):
            return path
    raise StoreError(
        f"{run_path} was trained on {named}, which is not there or is another store "
        "now; name the store with --store"
    )


def open_run(path: Path) -> TrainedRun:
    """Open a run's folder.

    Raises:
        CheckpointError: there is no run, no epoch of it is finished, or its
            checkpoint is damaged.
        RecipeError: the run's record is damaged, or was edited since.
    """
    if not (path / BEST).is_file():
        read_record(path)  # an error if there is no run
        raise CheckpointError(
            f"{path} has no {BEST}: no epoch is finished; continue it with "
            "`ichfast train --resume`"
        )
    content = load_checkpoint(path / BEST)
    try:
        patients = patients_from_text(content[PATIENTS])
    except RecipeError as error:
        raise CheckpointError(f"{path / BEST} is damaged: {error}") from error
    return TrainedRun(
        path=path,
        record=read_record(path, settings=content[SETTINGS]),
        patients=patients,
        weights=content["model"],
    )
