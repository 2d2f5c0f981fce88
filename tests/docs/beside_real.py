"""Draws synthetic heads beside real ones, for a person who reads head CT to judge.

    python -m tests.docs.beside_real REAL PICTURE.png

REAL is a folder or an archive of DICOM files, as `ichfast prepare` takes it. The upper
half of the picture shows its first series, the lower half synthetic ones, each in a
row from the skull base to the vertex. It shows patients, so it is not drawn into the
repository.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ichfast.cli.demo import PREVALENCE
from ichfast.errors import IchfastError, SourceError
from ichfast.prepare.prepare import prepare_store
from ichfast.store.store import Store
from ichfast.synth.dataset import synthesize
from ichfast.windows import HU_OFFSET, window_values
from tests.docs.pages import ROOT

NUM_ROWS, NUM_COLUMNS = 3, 8
"""Series of each kind, and slices of each."""

LEVEL = 256


def draw_beside_real(real: Path, png: Path, *, seed: int = 0) -> None:
    """Draw slices of real series, and of as many synthetic ones below them.

    Args:
        real: DICOM files, as `ichfast prepare` takes them.
        png: The picture, outside the repository. Replaced if it exists.
        seed: Of the synthetic heads.

    Raises:
        IchfastError: The picture would lie in the repository, or there are no slices.
    """
    if ROOT in png.resolve().parents:
        raise SourceError(f"{png} shows patients; name a place outside {ROOT}")
    with tempfile.TemporaryDirectory() as folder:
        heads = synthesize(
            Path(folder, "heads"),
            num_slices=40 * NUM_ROWS,
            seed=seed,
            prevalence=PREVALENCE,
            quirks=False,
        )
        rows = []
        for name, source in (("real", real), ("drawn", heads.dicom_dir)):
            path = Path(folder, f"{name}-store")
            prepare_store([source], path, labels=None, workers=1, keep_ids=True)
            with Store(path) as store:
                series = store.table["series"].unique()[:NUM_ROWS]
                rows += [_draw_row(store, each) for each in series]
    Image.fromarray(np.vstack(rows)).save(png)


def _draw_row(store: Store, series: str) -> npt.NDArray[np.uint8]:
    """Slices of a series from the bottom to the top, side by side."""
    positions = np.flatnonzero(store.table["series"] == series)
    chosen = np.linspace(0, len(positions) - 1, NUM_COLUMNS + 2).round()[1:-1]
    tiles = []
    for position in positions[chosen.astype(np.intp)]:
        stored_HW = store.slice_HW(int(position), LEVEL)
        hu_HW = stored_HW.astype(np.float32) - HU_OFFSET
        shown_HW = window_values(hu_HW, center=40.0, width=80.0, shape="linear")
        tile = Image.fromarray((255 * shown_HW).astype(np.uint8))
        tiles.append(np.asarray(tile.resize((LEVEL, LEVEL))))
    return np.hstack(tiles)


def main(real: str, png: str) -> int:
    """Draw the picture; returns the exit status."""
    try:
        draw_beside_real(Path(real), Path(png))
    except IchfastError as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
