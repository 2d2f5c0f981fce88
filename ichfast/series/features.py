"""The features folder: pooled features and logits of every slice of a store.

    features.json   `FeaturesHeader`; written last: without it, features are unfinished
    features.npy    (N, D) float16, the backbone's pooled features, in store order
    logits.npy      (N, K) float32, the backbone's logits
    run.npy         (N,) int8, number of the run that computed the row; -1 for none

1. Features of one run have every slice of the store, those that the run trained on too.
   Features of several runs, trained on different folds of the store, have each slice by
   the run whose validation fold it is in; the others have none.
2. They belong to one store and to one state of each run: the header has the digest of
   the store, and of each run's best.pt.
3. A reader checks the header, and type, shape, size and checksum of each array. Arrays
   are memory-mapped.

Shape letters: N slices of the store, D features, K classes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ichfast.errors import PredictionError, RecipeError, first_line
from ichfast.labels import CLASSES
from ichfast.recipes.settings import from_dict, to_dict
from ichfast.store.store import Store
from ichfast.system.checksums import read_document, with_checksum
from ichfast.system.files import (
    file_crc32c,
    flush,
    make_folder,
    remove_leftovers,
    write_text_atomically,
)

if TYPE_CHECKING:
    from ichfast.runs.trained import TrainedRun  # imports torch

FORMAT_VERSION = 1

HEADER = "features.json"
"""File of a features folder's header."""

FEATURES, LOGITS, RUN = "features.npy", "logits.npy", "run.npy"
ARRAYS = (FEATURES, LOGITS, RUN)
"""Files of the arrays."""

MAX_RUNS = 100
"""Upper limit of the number of runs; a store has at most 100 folds."""

_AGAIN = "make the features again with `ichfast features`"


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesRun:
    """A run that has computed features."""

    name: str

    path: str
    """Absolute path of the run's folder."""

    digest: str
    """Hex SHA-256 of its best.pt."""

    arch: str
    size: int
    """Side of the images, pixels."""

    windows: tuple[str, ...]
    num_channels: int
    fold: int
    """The fold on which the run was not trained."""

    @classmethod
    def of(cls, run: TrainedRun) -> FeaturesRun:
        """Describe a run."""
        recipe = run.record.recipe
        return cls(
            name=run.name,
            path=str(run.path.absolute()),
            digest=run.digest,
            arch=recipe.model.arch,
            size=recipe.data.size,
            windows=recipe.data.windows,
            num_channels=recipe.data.num_channels,
            fold=recipe.folds.fold,
        )

    @property
    def images(self) -> tuple[object, ...]:
        """What the runs of a features folder have in common."""
        return self.arch, self.size, self.windows, self.num_channels


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesHeader:
    """The content of `features.json`."""

    format: int = FORMAT_VERSION
    runs: tuple[FeaturesRun, ...]
    store: str
    """Absolute path of the store's folder."""

    store_digest: str
    """Identifies the store (`StoreHeader.digest`)."""

    num_slices: int
    """N."""

    num_features: int
    """D."""

    checksums: dict[str, int] = field(default_factory=dict)
    """CRC-32C of each array's file, by name; set by `FeaturesWriter`."""

    def to_json(self) -> str:
        """Format as JSON, with the checksum as the last field."""
        return with_checksum(to_dict(self))

    def arrays(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of each array, by file."""
        return {
            FEATURES: (np.dtype("<f2"), (self.num_slices, self.num_features)),
            LOGITS: (np.dtype("<f4"), (self.num_slices, len(CLASSES))),
            RUN: (np.dtype("i1"), (self.num_slices,)),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """A features folder, opened for reading."""

    path: Path
    header: FeaturesHeader
    features_ND: npt.NDArray[np.float16]
    logits_NK: npt.NDArray[np.float32]
    run_N: npt.NDArray[np.int8]

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Open a features folder, and check all of it.

        Raises:
            PredictionError: there are no features, or they are damaged or unfinished.
        """
        header = read_features_header(folder)
        arrays = {name: _checked_array(folder / name, header) for name in ARRAYS}
        run_N, logits_NK = arrays[RUN], arrays[LOGITS]
        if not ((run_N >= -1) & (run_N < len(header.runs))).all():
            raise _damaged(folder / RUN, "it names runs that the header does not have")
        if not np.isfinite(logits_NK[run_N >= 0]).all():
            raise _damaged(folder / LOGITS, "it holds logits that are not finite")
        return cls(
            path=folder,
            header=header,
            features_ND=arrays[FEATURES],
            logits_NK=logits_NK,
            run_N=run_N,
        )

    def check_store(self, store: Store) -> None:
        """Refuse features of another store.

        Raises:
            PredictionError: they are of another store, or of this one before an append.
        """
        wanted = store.header.digest, len(store)
        if (self.header.store_digest, self.header.num_slices) != wanted:
            raise PredictionError(
                f"{self.path} has the features of another store than {store.path}, or "
                f"of this one before slices were appended; {_AGAIN}, or name the "
                "store they are of with --store"
            )


class FeaturesWriter:
    """Writes the arrays of a features folder by parts, and its header at the end.

    Args:
        folder: made if it is missing. What an unfinished one has is written anew. The
            caller makes sure that no other process writes it at the same time.
        header: complete except for the checksums.

    Raises:
        PredictionError: the folder holds finished features or cannot be written, or
            the runs see different images.
    """

    def __init__(self, folder: Path, header: FeaturesHeader) -> None:
        check_header(header, folder)
        if (folder / HEADER).exists():
            raise PredictionError(
                f"{folder} holds features already; name another folder, or delete it"
            )
        self.folder, self.header = folder, header
        with self._explaining():
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(folder)
            remove_leftovers(folder / HEADER)
            self.features_ND, self.logits_NK, self.run_N = map(self._make, ARRAYS)
        self.run_N[:] = -1

    def _make(self, name: str) -> np.memmap[Any, Any]:
        path = self.folder / name
        array = np.lib.format.open_memmap(path, "w+", *self.header.arrays()[name])
        # A full disk is an error here, and would kill the process later.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def write(
        self,
        rows_M: npt.NDArray[np.int64],
        *,
        features_MD: npt.NDArray[np.floating],
        logits_MK: npt.NDArray[np.floating],
        run: int,
    ) -> None:
        """Write some rows.

        Args:
            rows_M: store positions.
            features_MD: finite features; rounded to float16.
            logits_MK: finite logits.
            run: number of the run that computed them.

        Raises:
            PredictionError: they are not finite as float16.
        """
        half_MD = features_MD.astype(np.float16)
        if not (np.isfinite(half_MD).all() and np.isfinite(logits_MK).all()):
            raise PredictionError(
                f"{self.header.runs[run].path} computes features or logits that are "
                "not finite, or above 65,504; train it again"
            )
        self.features_ND[rows_M] = half_MD
        self.logits_NK[rows_M] = logits_MK
        self.run_N[rows_M] = run

    def finish(self) -> FeaturesHeader:
        """Bring the arrays to the disk, and write the header with their checksums.

        Returns:
            The header as written.

        Raises:
            PredictionError: it cannot be written.
        """
        with self._explaining():
            for name in ARRAYS:
                flush(self.folder / name)  # fsync writes mapped pages, too
            checksums = {name: file_crc32c(self.folder / name) for name in ARRAYS}
            header = replace(self.header, checksums=checksums)
            write_text_atomically(self.folder / HEADER, header.to_json())
        return header

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PredictionError(
                f"cannot write features to {self.folder}: {error.strerror}; make room, "
                "or name another folder"
            ) from error


def read_features_header(folder: Path) -> FeaturesHeader:
    """Read and check the header of a features folder.

    Raises:
        PredictionError: there are no features, or the header is damaged.
    """
    path = folder / HEADER
    try:
        found = read_document(path)
        if found.get("format") != FORMAT_VERSION:
            raise PredictionError(
                f"{folder} has features of format {found.get('format')!r:.20}, this "
                f"ichfast reads {FORMAT_VERSION}; {_AGAIN}"
            )
        header = from_dict(FeaturesHeader, found)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PredictionError(
            f"{folder} has no finished features (no {HEADER}); run `ichfast features "
            f"RUN {folder}`"
        ) from error
    except (OSError, ValueError, RecipeError) as error:
        raise _damaged(path, first_line(error)) from error
    if problem := _contradiction(header):
        raise _damaged(path, problem)
    return header


def check_header(header: FeaturesHeader, folder: Path) -> None:
    """Refuse to write features of runs that do not fit together.

    Args:
        header: of the features.
        folder: where they would be written.

    Raises:
        PredictionError: the runs see different images, or have the same fold.
    """
    if problem := _contradiction(header):
        raise PredictionError(f"cannot write features to {folder}: {problem}")


def _contradiction(header: FeaturesHeader) -> str:
    """A value that a header cannot have; empty if there is none."""
    if not 1 <= len(header.runs) <= MAX_RUNS:
        return f"it has {len(header.runs)} runs, expected 1 to {MAX_RUNS}"
    if min(header.num_slices, header.num_features) < 1:
        return "it has no slices or no features"
    images = {run.images for run in header.runs}
    if len(images) > 1:
        shown = ", ".join(
            f"{run.name} is {run.arch} at {run.size} with {', '.join(run.windows)}"
            for run in header.runs
        )
        return (
            f"the runs of one folder have one arch, size and windows: {shown}; make a "
            "folder for each"
        )
    if len({run.fold for run in header.runs}) < len(header.runs):
        return "two of its runs have the same fold; name the run of each fold once"
    return ""


def _checked_array(path: Path, header: FeaturesHeader) -> npt.NDArray[Any]:
    dtype, shape = header.arrays()[path.name]
    try:
        crc32c = file_crc32c(path)
        array = _map_array(path, dtype, shape)
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, first_line(error)) from error
    if crc32c != header.checksums.get(path.name):
        raise _damaged(path, "its checksum is wrong")
    return array


def _map_array(
    path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.memmap[Any, Any]:
    """Map the file of an array that is exactly of this kind.

    Raises:
        OSError: no such file, or it cannot be opened.
        ValueError: it holds another kind of array, or more or less than it.
    """
    if not path.is_file():
        # Opening a pipe would wait for a writer.
        raise FileNotFoundError(errno.ENOENT, "no such file, or not a regular one")
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is no .npy file of version 1.0")
        found = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    if found != (shape, False, dtype):
        raise ValueError(
            f"it is an array of {found[2]}, shape {found[0]}; expected {dtype}, {shape}"
        )
    expected = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if path.stat().st_size != expected:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, expected {expected:,}")
    return np.memmap(path, dtype, "r", offset, shape)


def _damaged(path: Path, reason: str) -> PredictionError:
    return PredictionError(f"{path} is damaged: {reason}; {_AGAIN}")
