"""What several test files share: a small store, a folder of DICOM files, backbones."""

from __future__ import annotations

import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from ichfast.dicom.slices import read_slices
from ichfast.labels import CLASSES
from ichfast.models.config import ARCHS, Arch
from ichfast.store.store import Store
from ichfast.system.limits import LimitedProcess
from ichfast.system.timeouts import stall_limit
from tests.store.slice_store import write_slices

if TYPE_CHECKING:
    from torch import nn

# Jobs in the background of a script ignore Ctrl-C, and so does all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _memory_is_unlimited_again() -> Iterator[None]:
    """A test may decode in its own process, which limits memory until the process ends.

    Tests after it would fail where they need more.
    """
    limits = resource.getrlimit(resource.RLIMIT_AS)
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


class KeptProcess(LimitedProcess):
    """A process that does not end with a block; it starts in 0.3 s."""

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def _one_process_lists_sources() -> Iterator[None]:
    """Hundreds of runs of prepare list their sources in one process, in turn.

    Another one is started where a test changes what it inherits.
    """
    kept: dict[object, KeptProcess] = {}

    def process_here() -> LimitedProcess:
        inherited = Path.cwd(), stall_limit(), tuple(sys.path)
        if inherited not in kept:
            for process in kept.values():
                process.close()
            kept.clear()
        return kept.setdefault(inherited, KeptProcess())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ichfast.sources.sources.LimitedProcess", process_here)
        yield
    for process in kept.values():
        process.close()


TINY_ARCH = "tiny"
"""A backbone of 0.1 million weights, for runs that any network will do for."""


def add_tiny_arch() -> None:
    """Let this process build `TINY_ARCH`."""
    ARCHS[TINY_ARCH] = Arch(timm_name="test_efficientnet")


@pytest.fixture(scope="session", autouse=True)
def _a_tiny_backbone() -> None:
    """Not when a module is loaded: tests are made for each of the other backbones."""
    add_tiny_arch()


# patient, study, series, slices, (rows, columns), labelled
SERIES = (
    ("P1", "S1", "R1", 7, (512, 512), True),
    ("P1", "S2", "R2", 5, (512, 512), True),
    ("P2", "S3", "R3", 6, (63, 65), True),
    ("P3", "S4", "R4", 5, (512, 512), True),
    ("P4", "S5", "R5", 3, (512, 512), False),
    ("P5", "S6", "R6", 3, (512, 512), True),
)
"""29 slices: five patients, two shapes, one series without labels."""

SLICES_A_UNIT = 17


def draw_slice(
    rng: np.random.Generator, rows: int, columns: int
) -> npt.NDArray[np.uint16]:
    """A bright disc with coarse structure and noise in air, shape (H, W), uint16."""
    y_H1, x_1W = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    blocks_hu = rng.integers(-50, 150, (rows // 8 + 1, columns // 8 + 1))
    hu_HW = np.kron(blocks_hu, np.ones((8, 8)))[:rows, :columns]
    hu_HW = hu_HW + rng.integers(-9, 10, (rows, columns))
    hu_HW[x_1W**2 + (y_H1 / 1.1) ** 2 > 0.6] = -1000
    return np.asarray(hu_HW + 1024, dtype=np.uint16)


def write_store(
    path: Path,
    *,
    levels: tuple[int, ...] = (512, 256),
    plan: Mapping[str, str] | None = None,
    packed: bool = False,
) -> list[npt.NDArray[np.uint16]]:
    """Write a finished store of `SERIES` to `path`.

    Returns:
        The slices at level 512, in the order of the table.
    """
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = [
        {"patient": patient, "study": study, "series": series, "instance_number": k}
        | {"position_mm": 5.0 * k, "slice_id": f"ID_{series}_{k}"}
        | {"rows": shape[0], "columns": shape[1], "labelled": labelled}
        for patient, study, series, num_slices, shape, labelled in SERIES
        for k in range(num_slices)
    ]
    slices = [draw_slice(rng, row["rows"], row["columns"]) for row in rows]
    labels_NK = rng.integers(0, 2, (len(rows), len(CLASSES)))
    labels_NK[:, 0] = labels_NK[:, 1:].max(axis=1)
    write_slices(
        path,
        slices,
        rows,
        labels_NK,
        levels=levels,
        slices_a_unit=SLICES_A_UNIT,
        plan=plan,
        packed=packed,
    )
    return slices


@pytest.fixture(scope="session")
def tiny_store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished store: `SERIES`. Not to be changed."""
    path = tmp_path_factory.mktemp("tiny") / "store"
    write_store(path)
    return path


@pytest.fixture
def tiny_store(tiny_store_path: Path) -> Iterator[Store]:
    """That store, open: 29 slices, 23 of 512x512 and 5 patients, in two units."""
    with Store(tiny_store_path) as store:
        yield store


@pytest.fixture(scope="session")
def packed_store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a packed store with the slices of `tiny_store_path`."""
    path = tmp_path_factory.mktemp("packed") / "store"
    write_store(path, packed=True)
    return path


@pytest.fixture
def packed_store(packed_store_path: Path) -> Iterator[Store]:
    """That store, open."""
    with Store(packed_store_path) as store:
        yield store


@pytest.fixture(scope="session")
def real_slices() -> list[npt.NDArray[np.uint16]]:
    """Slices of the competition, as they are stored."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "rsna_slices"
    if not folder.is_dir():
        pytest.skip("the real slices of ../shared/data are not here")
    return [
        each.stored_HW
        for file in sorted(folder.glob("*.dcm"))
        for each in read_slices(file.read_bytes())
    ]


SHAPES = ((24, 32), (17, 13))
"""Rows and columns of the slices of `source`."""


def write_dicom(
    path: Path,
    slice_id: str,
    *,
    hu_HW: npt.NDArray[np.int16] | None = None,
    **tags: Any,
) -> None:
    """Write one CT slice: explicit little-endian, signed 16-bit, intercept 0."""
    if hu_HW is None:
        hu_HW = np.full(SHAPES[0], -1000, np.int16)
    dicom = Dataset()
    dicom.file_meta = FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dicom.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dicom.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dicom.SOPClassUID = CTImageStorage
    dicom.Modality = "CT"
    dicom.PatientID, dicom.PatientName = "MRN-4711", "Somebody^Secret"
    dicom.StudyInstanceUID, dicom.SeriesInstanceUID = "1.77.1", "1.77.2"
    dicom.ImagePositionPatient = [0, 0, 0]
    dicom.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dicom.PixelSpacing = [0.5, 0.4]
    dicom.Rows, dicom.Columns = hu_HW.shape
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = 16, 16, 15
    dicom.PixelRepresentation, dicom.SamplesPerPixel = 1, 1
    dicom.PhotometricInterpretation = "MONOCHROME2"
    dicom.RescaleSlope, dicom.RescaleIntercept = 1, 0
    dicom.WindowCenter, dicom.WindowWidth = 40, 80
    dicom.PixelData = hu_HW.astype("<i2").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "ID_1" is no UID, in RSNA as well
        dicom.SOPInstanceUID = slice_id
        for name, value in tags.items():
            setattr(dicom, name, value)
        dicom.save_as(path, enforce_file_format=True)


def random_hu(seed: int) -> npt.NDArray[np.int16]:
    """The HU of slice ``ID_<seed>`` of `source`."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1000, 3000, SHAPES[seed == 10], np.int16)


@pytest.fixture(scope="session")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for k in range(23):
        write_dicom(
            folder / f"{k:03d}.dcm",
            f"ID_{k}",
            hu_HW=random_hu(k),
            PatientID=f"MRN-{k // 12}",
            StudyInstanceUID=f"1.77.{k // 12}",
            SeriesInstanceUID=f"1.88.{k // 8}",
            ImagePositionPatient=[0, 0, -2.5 * k],
        )
    return folder


@pytest.fixture
def source(_source: Path, tmp_path: Path) -> Path:
    """23 slices in three series, stored in an order that is not that of position."""
    return Path(shutil.copytree(_source, tmp_path / "source"))


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, by name."""
    files = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def check_same_files(ours: Path, theirs: Path, *, apart: set[str]) -> None:
    """Two stores have the same files, with the same bytes apart from some."""
    left, right = contents(ours), contents(theirs)
    assert set(left) == set(right)
    assert {k: v for k, v in left.items() if k not in apart} == {
        k: v for k, v in right.items() if k not in apart
    }


@pytest.fixture(scope="module")
def units_of_four() -> Iterator[None]:
    """Prepare cuts the listing into units of four entries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ichfast.prepare.prepare.UNIT_ENTRIES", 4)
        yield


# Torch and matplotlib are imported by the tests that need them only.


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts of a report are drawn and not rendered, which takes most of its time."""
    monkeypatch.setattr("ichfast.report.charts.captions.chart_png", lambda _: b"")


@pytest.fixture
def one_thread_and_seed() -> Iterator[None]:
    """Torch computes by one thread, and draws the same numbers each time."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    """One untouched model of each arch, in evaluation mode; not to be changed."""
    import torch

    from ichfast.models.build import build_model

    torch.manual_seed(0)
    return {arch: build_model(arch).eval() for arch in ARCHS}
