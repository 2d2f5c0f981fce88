"""The self-test: synthetic heads through prepare and loader, against the reference.

Two batches are loaded from a temporary store, once read from the disk and once kept in
the device's memory. Each value must be within the bounds of `ichfast.augment.bounds`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from ichfast.augment.bounds import image_bounds, stored_bounds
from ichfast.augment.config import PRESETS
from ichfast.augment.parameters import draw
from ichfast.augment.reference import halve
from ichfast.errors import LoaderError
from ichfast.loading.config import DataConfig, no_normalization, parse_windows
from ichfast.loading.loader import make_loader
from ichfast.prepare.prepare import prepare_store
from ichfast.store.store import Store
from ichfast.synth.dataset import synthesize

NUM_SLICES, SLICE_SIZE = 8, 160
"""Number of slices, and their side, pixels. They are halved once."""

CONFIG = DataConfig(
    size=72,
    batch_size=NUM_SLICES // 2,
    windows=("brain", "subdural", "bone"),
)
AUGMENT = replace(
    PRESETS["exp-30"],
    max_warp=0.2,
    lighting_probability=1.0,
    cutout_probability=1.0,
)
"""Every step of the graph is drawn."""


def run_self_test(device: str) -> None:
    """Compare the loader's batches with the reference.

    Args:
        device: ``cuda`` or ``cpu``.

    Raises:
        LoaderError: a value is out of its bounds.
        IchfastError: a step failed.
    """
    with TemporaryDirectory(prefix="ichfast-") as folder:
        store_path = Path(folder, "store")
        heads = synthesize(
            Path(folder, "heads"), num_slices=NUM_SLICES, size=SLICE_SIZE
        )
        prepare_store(
            [heads.dicom_dir],
            store_path,
            labels=None,
            levels=(512,),
            workers=1,
            keep_ids=True,
        )
        with Store(store_path) as store:
            for cache in ("none", "device"):
                config = replace(CONFIG, cache=cache)
                with make_loader(
                    store, range(NUM_SLICES), config, augment=AUGMENT, device=device
                ) as loader:
                    images = [batch.images_BCHW.cpu().numpy() for batch in loader]
                _check_images(
                    store, np.concatenate(images).transpose(0, 2, 3, 1), cache
                )


def _check_images(
    store: Store, found_NSSC: npt.NDArray[np.float16], cache: str
) -> None:
    windows = parse_windows(CONFIG.windows)
    normalization = no_normalization(len(windows))
    halved = [halve(store.slice_HW(row, 512)) for row in range(NUM_SLICES)]
    parameters = draw(
        AUGMENT,
        seed=0,
        epoch=0,
        slices_B=np.arange(NUM_SLICES),
        source_shape_B2=np.array([each.shape for each in halved], np.float64),
        size=CONFIG.size,
    )
    for row, found_SSC in enumerate(found_NSSC):
        low_SSC, high_SSC = image_bounds(
            stored_bounds(halved[row], parameters.matrix_B33[row], CONFIG.size),
            parameters,
            row,
            windows=windows,
            mean_C=normalization.mean,
            std_C=normalization.std,
        )
        # A NaN is within nothing.
        num_wrong = (~((low_SSC <= found_SSC) & (found_SSC <= high_SSC))).sum()
        if num_wrong:
            raise LoaderError(
                f"{num_wrong:,} of {found_SSC.size:,} values of slice {row} differ "
                f"from the reference (cache {cache})"
            )
