"""Synthetic heads look like RSNA's files, and bleed exactly where they are labelled."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import FileDataset

from ichfast.errors import RecipeError, SourceError
from ichfast.labels import CLASSES, read_labels
from ichfast.synth.anatomy import draw_anatomy
from ichfast.synth.canvas import Canvas, Grid
from ichfast.synth.dataset import (
    RSNA_PREVALENCE,
    TRUNCATED_BYTES,
    SynthReport,
    synthesize,
)
from ichfast.synth.hemorrhage import (
    AGES,
    MIN_AREA_MM2,
    SUBTYPES,
    Bleed,
    draw_bleed,
    midline_shift,
)
from ichfast.synth.phantom import Phantom
from ichfast.synth.scanner import (
    SCANNERS,
    WRAPPED_SCANNER,
    Header,
    encode_header,
    encode_pixels,
    scan_circle,
)

RSNA_SLICES = Path(__file__).parents[3] / "shared" / "data" / "rsna_slices"
NO_BLEEDS = dict.fromkeys(SUBTYPES, 0.0)


def read(path: Path) -> FileDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the UIDs are invalid, as RSNA's are
        dataset = pydicom.dcmread(path)
        list(dataset)  # parses every element now, while warnings are off
    return dataset


def read_hu(dataset: FileDataset) -> npt.NDArray[np.int64]:
    raw_HW = dataset.pixel_array.astype(np.int64)
    if int(dataset.BitsStored) == 12 and int(dataset.RescaleIntercept) > -100:
        return np.where(raw_HW >= 3096, raw_HW - 4096, raw_HW)
    return raw_HW + int(dataset.RescaleIntercept)


def files_of(report: SynthReport) -> dict[str, Path]:
    return {path.stem: path for path in sorted(report.dicom_dir.rglob("*.dcm"))}


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> SynthReport:
    """Twelve hundred small slices with all the quirks that small slices can have."""
    out = tmp_path_factory.mktemp("synth") / "many"
    return synthesize(out, num_slices=1200, seed=3, size=64)


@pytest.fixture(scope="module")
def datasets(many: SynthReport) -> dict[str, FileDataset]:
    return {slice_id: read(path) for slice_id, path in files_of(many).items()}


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> SynthReport:
    """Two heads of RSNA's size."""
    out = tmp_path_factory.mktemp("synth") / "full"
    return synthesize(out, num_slices=40, seed=5)


def phantom_of(seed: int, *, size: int = 256) -> tuple[Phantom, Any]:
    anatomy = draw_anatomy(np.random.default_rng(seed))
    grid = Grid(
        rows=size,
        columns=size,
        spacing_mm=250 / size,
        rotation=0.1,
        x_mm=3.0,
        y_mm=-4.0,
    )
    return Phantom(anatomy, grid), np.full((size, size), -1000, dtype=np.float32)


def drawn(
    subtype: str, *, age: str | None = None
) -> Iterator[tuple[Any, Any, float, tuple[str, ...]]]:
    """Slices of heads with one bleed: with it, without it, its HU, what is seen."""
    for seed in range(3):
        phantom, air_HW = phantom_of(seed)
        bleed = draw_bleed(np.random.default_rng(seed), subtype)
        if age:
            bleed = bleed._replace(age=age, hu=AGES[age].mean_hu)
        for height in np.arange(-20.0, 120.0, 10.0):
            with_HW, seen = phantom.draw(air_HW, height, [bleed])
            without_HW, nothing = phantom.draw(air_HW, height)
            assert nothing == ()
            yield with_HW, without_HW, bleed.hu, seen


def test_the_subtypes_are_the_classes_without_any() -> None:
    assert CLASSES[1:] == SUBTYPES


@pytest.mark.slow
@pytest.mark.parametrize("subtype", SUBTYPES)
def test_a_labelled_slice_shows_blood_and_another_equals_the_head_without_it(
    subtype: str,
) -> None:
    num_seen = 0
    for with_HW, without_HW, hu, seen in drawn(subtype):
        if not seen:
            np.testing.assert_array_equal(with_HW, without_HW)
            continue
        num_seen += 1
        assert seen == (subtype,)
        is_blood_HW = np.abs(with_HW - hu) < np.abs(without_HW - hu) - 8
        assert is_blood_HW.sum() * (250 / 256) ** 2 > 0.5 * MIN_AREA_MM2
    assert num_seen > 3


@pytest.mark.slow
def test_an_extra_axial_bleed_lies_under_the_skull_and_a_deep_one_does_not() -> None:
    for subtype, nearest_mm in (("subdural", (0, 4)), ("intraventricular", (12, 90))):
        for with_HW, without_HW, hu, seen in drawn(subtype, age="acute"):
            if seen:
                blood_HW = (np.abs(with_HW - hu) < 9) & (with_HW > without_HW + 15)
                rows, columns = np.nonzero(blood_HW)
                bone = np.argwhere(without_HW > 500)
                gaps = [
                    np.hypot(*(bone - point).T).min()
                    for point in zip(rows[::9], columns[::9], strict=True)
                ]
                low, high = nearest_mm
                assert low <= min(gaps, default=low) <= high


def test_a_bleed_pushes_the_deep_brain_to_the_other_side() -> None:
    right = Bleed(
        subtype="subdural",
        age="acute",
        hu=60.0,
        height=70.0,
        half_height=30.0,
        angle=0.2,
        half_angle=1.0,
        thickness=10.0,
    )
    assert midline_shift([], 70.0) == 0.0
    assert midline_shift([right], 70.0) < midline_shift([right], 90.0) < 0.0
    assert midline_shift([right], 101.0) == 0.0


@pytest.mark.parametrize("subtype", ["epidural", "subarachnoid", "subdural"])
def test_a_one_sided_bleed_leaves_the_other_side_without_blood(subtype: str) -> None:
    phantom, air_HW = phantom_of(1)
    bleed = Bleed(
        subtype=subtype,
        age="acute",
        hu=64.0,
        height=70.0,
        half_height=30.0,
        half_angle=0.8,
        thickness=0.0 if subtype == "subarachnoid" else 9.0,
    )
    with_HW, seen = phantom.draw(air_HW, 70.0, [bleed])
    without_HW, _ = phantom.draw(air_HW, 70.0)
    columns = np.nonzero((with_HW > without_HW + 15) & (np.abs(with_HW - 64) < 9))[1]
    assert seen == (subtype,)
    assert columns.size > 50
    assert columns.min() > 128  # in the right half of the slice, where angle 0 is


def test_two_bleeds_are_labelled_both_and_the_smaller_only_where_it_is_seen() -> None:
    phantom, air_HW = phantom_of(0)
    bleeds = [draw_bleed(np.random.default_rng(2), name) for name in SUBTYPES]
    together = [phantom.draw(air_HW, h, bleeds)[1] for h in np.arange(-20, 120, 5.0)]
    assert max(len(seen) for seen in together) >= 3
    assert set().union(*together) == set(SUBTYPES)


@pytest.mark.slow
def test_the_brain_has_the_numbers_of_a_brain(full_size: SynthReport) -> None:
    volume = sorted(
        (
            dataset
            for slice_id, path in files_of(full_size).items()
            if slice_id != full_size.truncated and (dataset := read(path))
        ),
        key=lambda d: float(d.ImagePositionPatient[2]),
    )
    hu_HW = read_hu(volume[len(volume) // 2])
    middle_HW = hu_HW[176:336, 206:306]
    brain = middle_HW[(middle_HW > 0) & (middle_HW < 90)]
    assert brain.size > 0.9 * middle_HW.size
    assert 25 < np.median(brain) < 42
    assert hu_HW.max() > 900
    rough_HW = np.diff(middle_HW, axis=1)
    assert 1.5 < np.median(np.abs(rough_HW)) < 6
    assert 0.1 < np.mean((hu_HW > -50) & (hu_HW < 120)) < 0.5


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path,
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(tmp_path / name, num_slices=45, seed=seed, size=64)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not digest(tmp_path / "a").items() & digest(tmp_path / "c").items()


@pytest.mark.slow
def test_the_same_seed_draws_the_same_heads_without_their_bleeds(
    many: SynthReport, datasets: dict[str, FileDataset], tmp_path: Path
) -> None:
    calm = synthesize(
        tmp_path / "calm", num_slices=1200, seed=3, size=64, prevalence=NO_BLEEDS
    )
    assert set(calm.positives.values()) == {0}
    labels = read_labels(many.labels_path)
    bleeds = dict(zip(labels.ids, labels.labels_NK[:, 0], strict=True))
    calm_paths = files_of(calm)
    assert calm_paths.keys() == datasets.keys()
    for slice_id, dataset in list(datasets.items())[::7]:
        same = calm_paths[slice_id].read_bytes().endswith(dataset.PixelData)
        assert same == (bleeds[slice_id] == 0)


@pytest.mark.slow
def test_headers_hold_exactly_the_elements_of_rsna(
    datasets: dict[str, FileDataset],
) -> None:
    keywords = [
        "SOPInstanceUID",
        "Modality",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "StudyID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Rows",
        "Columns",
        "PixelSpacing",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "WindowCenter",
        "WindowWidth",
        "RescaleIntercept",
        "RescaleSlope",
        "PixelData",
    ]
    for dataset in list(datasets.values())[::20]:
        assert [element.keyword for element in dataset] == keywords


def test_headers_hold_the_elements_of_a_real_file(
    datasets: dict[str, FileDataset],
) -> None:
    paths = sorted(RSNA_SLICES.glob("*.dcm"))
    if not paths:
        pytest.skip(f"no real slices in {RSNA_SLICES}")
    made = next(iter(datasets.values()))
    for path in paths:
        real = read(path)
        assert [e.tag for e in real] == [e.tag for e in made]
        vrs = ["OW" if e.keyword == "PixelData" else e.VR for e in real]
        assert vrs == [e.VR for e in made]


@pytest.mark.parametrize("is_implicit", [True, False])
def test_texts_of_odd_length_are_padded_with_a_space_and_uids_with_a_zero(
    is_implicit: bool,
) -> None:
    header = Header(
        slice_id="ID_0123456789",
        patient_id="ID_abcdef01",
        study_uid="ID_1",
        series_uid="ID_2",
        grid=Grid(3, 5, spacing_mm=0.5, rotation=0.0, x_mm=0.0, y_mm=0.0),
        height_mm=3.25,
        tilt=0.3,
    )
    content = encode_header(SCANNERS[0], header, is_implicit=is_implicit)
    assert b"ID_0123456789\0" in content
    assert b"ID_abcdef01 " in content
    assert content.endswith((3 * 5 * 2).to_bytes(4, "little"))


def test_ids_are_pseudonyms_that_name_the_files_and_never_repeat(
    many: SynthReport, datasets: dict[str, FileDataset]
) -> None:
    assert len(datasets) == many.slices == 1200
    for slice_id, path in files_of(many).items():
        dataset = datasets[slice_id]
        assert dataset.SOPInstanceUID == slice_id
        assert dataset.SeriesInstanceUID == path.parent.name
        assert len(slice_id) == 12
        assert len(dataset.PatientID) == 11
    assert len({d.SeriesInstanceUID for d in datasets.values()}) == many.series
    assert len({d.PatientID for d in datasets.values()}) == many.patients
    assert many.patients < many.series


def test_a_series_has_one_shape_and_distinct_positions(
    datasets: dict[str, FileDataset],
) -> None:
    series: dict[str, list[FileDataset]] = {}
    for dataset in datasets.values():
        series.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
    counts = sorted(len(slices) for slices in series.values())
    assert counts[1] >= 20
    assert counts[-1] <= 45
    for slices in series.values():
        assert len({(d.Rows, d.Columns, d.BitsStored) for d in slices}) == 1
        positions = {float(d.ImagePositionPatient[2]) for d in slices}
        assert len(positions) == len(slices)


def test_the_quirks_of_the_set_are_there(
    many: SynthReport, datasets: dict[str, FileDataset]
) -> None:
    slices = datasets.values()
    seen = Counter(
        name
        for d in slices
        for name, is_so in {
            "unsigned": d.BitsStored == 12 and d.PixelRepresentation == 0,
            "signed": d.BitsStored == 16 and d.PixelRepresentation == 1,
            "two windows": not isinstance(d.WindowCenter, pydicom.valuerep.DSfloat),
            "implicit": d.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2",
            "tilted": float(d.ImageOrientationPatient[4]) < 0.999,
            "rare shape": (d.Rows, d.Columns) != (64, 64),
            "wrapped": d.BitsStored == 12 and float(d.RescaleIntercept) > -100,
            "padded": int(d.pixel_array[0, 0]) == -2000,
        }.items()
        if is_so
    )
    assert seen["unsigned"] + seen["signed"] == len(datasets)
    assert seen["two windows"] == seen["unsigned"]
    for name, low, high in (
        ("unsigned", 0.3, 0.7),
        ("implicit", 0.2, 0.6),
        ("tilted", 0.3, 0.8),
        ("rare shape", 0.01, 0.1),
        ("wrapped", 0.01, 0.1),
        ("padded", 0.2, 0.6),
    ):
        assert low < seen[name] / len(datasets) < high, name
    assert read_labels(many.labels_path).num_duplicates == 24


@pytest.mark.slow
def test_without_quirks_there_are_none(tmp_path: Path) -> None:
    report = synthesize(tmp_path / "s", num_slices=300, size=64, quirks=False)
    assert report.truncated is None
    assert read_labels(report.labels_path).num_duplicates == 0
    for path in files_of(report).values():
        dataset = read(path)
        assert (dataset.Rows, dataset.Columns) == (64, 64)
        assert dataset.BitsStored == 16 or dataset.RescaleIntercept == -1024


def test_one_full_size_file_is_cut_off_like_the_competitions(
    full_size: SynthReport,
) -> None:
    sizes = {k: len(read(path).PixelData) for k, path in files_of(full_size).items()}
    assert full_size.truncated is not None
    assert sizes.pop(full_size.truncated) == TRUNCATED_BYTES
    assert set(sizes.values()) == {524_288}


@pytest.mark.parametrize("scanner", [*SCANNERS, WRAPPED_SCANNER])
def test_every_scanners_pixels_come_back_as_hu(scanner: Any) -> None:
    hu_HW = np.linspace(-1000, 3050, 64 * 64, dtype=np.float32).reshape(64, 64)
    expected_HW = np.rint(hu_HW).astype(np.int64)
    outside_HW = scan_circle(64, 64)
    content = encode_pixels(scanner, hu_HW, outside_HW)
    raw_HW = np.frombuffer(content, "<i2").reshape(64, 64).astype(np.int64)
    if not scanner.is_signed:
        assert 0 <= raw_HW.min() <= raw_HW.max() < 4096
    if scanner.wraps:
        raw_HW = np.where(raw_HW >= 3096, raw_HW - 4096, raw_HW)
    elif scanner.padding_raw is not None:
        assert set(raw_HW[outside_HW]) == {scanner.padding_raw}
        expected_HW[outside_HW] = scanner.padding_raw + scanner.intercept
    np.testing.assert_array_equal(raw_HW + scanner.intercept, expected_HW)


def test_prevalences_come_near_those_of_rsna(many: SynthReport) -> None:
    for name, share in RSNA_PREVALENCE.items():
        assert many.positives[name] / many.slices == pytest.approx(share, abs=0.012)
    assert 0.10 < many.positives["any"] / many.slices < 0.18


@pytest.mark.slow
def test_raised_prevalences_are_reached(tmp_path: Path) -> None:
    report = synthesize(
        tmp_path / "s",
        num_slices=600,
        size=64,
        prevalence=dict.fromkeys(SUBTYPES, 0.25),
    )
    for name in SUBTYPES:
        assert report.positives[name] / 600 == pytest.approx(0.25, abs=0.05)


def test_the_label_csv_agrees_with_the_report(many: SynthReport) -> None:
    table = read_labels(many.labels_path)
    assert set(table.ids) == set(files_of(many))
    counts = dict(zip(CLASSES, table.labels_NK.sum(axis=0), strict=True))
    assert counts == many.positives


@pytest.mark.parametrize("num_slices", [1, 2, 7])
def test_few_slices_still_span_a_whole_head(tmp_path: Path, num_slices: int) -> None:
    report = synthesize(tmp_path / "s", num_slices=num_slices, size=64)
    assert report.slices == len(files_of(report)) == num_slices
    assert report.series == 1


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SourceError, match="not an empty folder"):
        synthesize(tmp_path, num_slices=1, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_written_to_is_one_of_our_errors(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="cannot write"):
        synthesize(tmp_path / "file" / "out", num_slices=1, size=64)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_slices": 0}, "num_slices"),
        ({"size": 63}, "size"),
        ({"size": 513}, "size"),
        ({"prevalence": {"any": 0.5}}, "any"),
        ({"prevalence": {"subdural": 1.5}}, "subdural"),
        ({"prevalence": {"subdural": float("nan")}}, "subdural"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        synthesize(tmp_path / "s", **{"num_slices": 3, "size": 64, **setting})
    assert list(tmp_path.iterdir()) == []


def test_a_box_around_a_place_finds_it_in_a_turned_head_too() -> None:
    grid = {"rows": 128, "columns": 96, "spacing_mm": 2.0, "x_mm": 0.0, "y_mm": 0.0}
    places = []
    for rotation in (0.0, 0.3):
        canvas = Canvas(
            Grid(**grid, rotation=rotation),  # type: ignore[arg-type]
            reach_mm=(90.0, 110.0),
            warp=[0.0] * 6,
            fold_offset=(0.0, 0.0, 64.0),
        )
        box = canvas.box_around(30.0, -50.0, 5.0, 5.0, 0.0)
        near = np.hypot(canvas.x_HW[box] - 30.0, canvas.y_HW[box] + 50.0)
        all_near = np.hypot(canvas.x_HW - 30.0, canvas.y_HW + 50.0)
        assert near.min() < 2.0
        assert near.dtype == np.float32  # twice as fast as float64
        assert (near < 5.0).sum() == (all_near < 5.0).sum()
        places.append((box[0].start, box[1].start))
    assert places[0] != places[1]
