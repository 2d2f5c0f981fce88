"""Masks are matched to volumes by their names, and label the slices of a store."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from ichfast.cli.main import cli
from ichfast.errors import LabelError
from ichfast.labels import CLASSES
from ichfast.prepare.masks import parse_classes, read_masks
from ichfast.store.store import Store
from tests.conftest import contents, write_dicom
from tests.nifti.test_masks import EXPECTED_ZK, mask_voxels
from tests.nifti.volumes import head_hu, nifti, packed

pytestmark = pytest.mark.slow

BHSD_NAMES = ("ID_0237f3c9_ID_40015688b9", "ID_029ebbea_ID_563afa0901")


def write_volumes(folder: Path, names: Sequence[str]) -> None:
    """Volumes of four slices each."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / f"{name}.nii.gz").write_bytes(packed(nifti(head_hu((6, 5, 4), seed))))


def write_masks(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.nii.gz").write_bytes(packed(nifti(mask_voxels())))


def prepare(*arguments: object) -> Result:
    command = ["prepare", *map(str, arguments), "--keep-ids", "--workers", "1"]
    return CliRunner().invoke(cli, command)


def labels_of(store: Path) -> pd.DataFrame:
    with Store(store) as opened:
        table = opened.table
        return table.set_index(table["slice_id"].astype(str))[list(CLASSES)]


# ---- layouts ----


def test_the_layout_of_bhsd(tmp_path: Path) -> None:
    root, store = tmp_path / "label_192", tmp_path / "store"
    write_volumes(root / "images", BHSD_NAMES)
    write_masks(root / "ground truths", BHSD_NAMES)
    result = prepare(root, "--masks", root / "ground truths", "--store", store)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["slices"], report["labelled"]) == (8, 8)
    assert report["rejected"] == {}
    assert (
        "labels: 2 masks of 2 volumes, 8 slices, 6 with a bleed, classes epidural, "
        "intraparenchymal, intraventricular, subarachnoid, subdural; masks without a "
        "volume: 0" in result.stderr
    )
    labels = labels_of(store)
    for name in BHSD_NAMES:
        rows = labels.loc[[f"images/{name}/{index}" for index in range(4)]]
        np.testing.assert_array_equal(rows.to_numpy(dtype=float), EXPECTED_ZK)


def test_the_layout_of_instance22(tmp_path: Path) -> None:
    root, store = tmp_path / "train", tmp_path / "store"
    write_volumes(root / "data", ["001", "002"])
    (root / "label").mkdir()
    for name in ("001", "002"):
        mask = nifti((mask_voxels() > 0).astype(np.uint8))
        (root / "label" / f"{name}.nii.gz").write_bytes(packed(mask))
    result = prepare(
        *(root / "data", "--masks", root / "label", "--mask-classes", "any"),
        *("--store", store),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["labelled"], report["partly_labelled"]) == (0, 8)
    labels = labels_of(store)
    assert labels["any"].tolist() == 2 * [0, 1, 1, 1]
    assert labels[list(CLASSES[1:])].isna().to_numpy().all()


@pytest.mark.parametrize("suffix", ["_seg", ".MASK"])
def test_masks_beside_their_volumes(tmp_path: Path, suffix: str) -> None:
    root, store = tmp_path / "heads", tmp_path / "store"
    write_volumes(root / "a", ["1"])
    write_volumes(root / "b", ["1", "2"])
    write_masks(root / "a", [f"1{suffix}"])
    write_masks(root / "b", [f"1{suffix}", f"2{suffix}"])
    result = prepare(root, "--masks", root, "--store", store)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["slices"], report["labelled"], report["rejected"]) == (12, 12, {})


def test_an_archive_with_volumes_beside_its_masks_is_read(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", ["1"])
    write_masks(tmp_path / "in", ["1_seg"])
    (tmp_path / "all").mkdir()
    with zipfile.ZipFile(tmp_path / "all" / "heads.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, path.name)
    folder, store = tmp_path / "all", tmp_path / "store"
    result = prepare(folder, "--masks", folder, "--store", store)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["labelled"], report["rejected"]) == (4, {"not-hu": 1})


def test_the_layout_of_nnunet(tmp_path: Path) -> None:
    write_volumes(tmp_path / "imagesTr", ["case_1_0000"])
    write_masks(tmp_path / "labelsTr", ["case_1"])
    found = read_masks(tmp_path / "labelsTr", [tmp_path / "imagesTr"])
    assert found.table.ids.tolist() == [f"case_1_0000/{k}" for k in range(4)]


def test_volumes_in_an_archive_with_masks_in_a_folder(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", BHSD_NAMES)
    write_masks(tmp_path / "masks", BHSD_NAMES)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in (tmp_path / "in").iterdir():
            archive.write(path, f"images/{path.name}")
    store = tmp_path / "store"
    result = prepare(
        tmp_path / "images.zip", "--masks", tmp_path / "masks", "--store", store
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["labelled"] == 8


def test_volumes_without_a_mask_are_counted_and_have_no_labels(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", ["1", "2", "3"])
    write_masks(tmp_path / "masks", ["2", "9"])
    store = tmp_path / "store"
    result = prepare(tmp_path / "in", "--masks", tmp_path / "masks", "--store", store)
    assert result.exit_code == 0, result.stderr
    assert "1 masks of 3 volumes" in result.stderr
    assert "masks without a volume: 1" in result.stderr
    assert json.loads(result.stdout)["labelled"] == 4
    assert labels_of(store)["any"].isna().sum() == 8


# ---- the store ----


def test_the_same_command_does_nothing_to_a_finished_store(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", ["1"])
    write_masks(tmp_path / "in", ["1_seg"])
    command = (tmp_path / "in", "--masks", tmp_path / "in", "--store", tmp_path / "s")
    assert prepare(*command).exit_code == 0
    before = contents(tmp_path / "s")
    result = prepare(*command)
    assert result.exit_code == 0, result.stderr
    assert contents(tmp_path / "s") == before


def test_masks_label_a_finished_store(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", ["1"])
    write_masks(tmp_path / "masks", ["1"])
    command = (tmp_path / "in", "--store", tmp_path / "s")
    assert prepare(*command).exit_code == 0
    result = prepare(*command, "--append", "--masks", tmp_path / "masks")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["labelled"] == 4


def test_hashed_ids_are_labelled_too(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", ["1"])
    write_masks(tmp_path / "masks", ["1"])
    command = ["prepare", tmp_path / "in", "--masks", tmp_path / "masks"]
    result = CliRunner().invoke(
        cli, [*map(str, command), "--store", str(tmp_path / "s"), "--workers", "1"]
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["labelled"] == 4


# ---- refused ----


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two volumes, and a folder with the mask of the first."""
    write_volumes(tmp_path / "in", ["1", "2"])
    write_masks(tmp_path / "masks", ["1"])
    return tmp_path / "in", tmp_path / "masks"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (
            nifti(np.zeros((6, 5, 3), np.uint8)),
            "it has 6 x 5 x 3 voxels, its volume 6 x 5 x 4",
        ),
        (b"text", "it is no NIfTI file"),
    ],
)
def test_a_mask_that_does_not_fit_ends_the_run_before_it_begins(
    folders: tuple[Path, Path], tmp_path: Path, mask: bytes, reason: str
) -> None:
    source, masks = folders
    (masks / "2.nii").write_bytes(mask)
    result = prepare(source, "--masks", masks, "--store", tmp_path / "store")
    assert result.exit_code == 1
    [line] = result.stderr.strip().splitlines()[-1:]
    assert line.startswith(f"Error: the mask 2.nii of the volume 2.nii.gz: {reason}")
    assert "; correct the mask" in line
    assert not (tmp_path / "store").exists()


def test_names_that_do_not_match_are_shown(folders: tuple[Path, Path]) -> None:
    source, masks = folders
    (masks / "1.nii.gz").rename(masks / "case_1.nii.gz")
    with pytest.raises(LabelError) as caught:
        read_masks(masks, [source])
    assert str(caught.value) == (
        f"no mask in {masks} has the name of a volume: a mask is case_1, a volume 1; "
        "name masks like their volumes, perhaps with _seg, _mask or -label behind "
        "(docs/labels.md)"
    )


def test_a_folder_without_masks_or_volumes_is_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source, masks = folders
    (tmp_path / "other").mkdir()
    write_dicom(tmp_path / "other" / "1.dcm", "ID_1")
    other = tmp_path / "other"
    with pytest.raises(LabelError) as caught:
        read_masks(other, [source])
    assert str(caught.value) == (
        f"no mask in {other}: no file ends in .nii or .nii.gz; name the folder of the "
        "masks"
    )
    with pytest.raises(LabelError) as caught:
        read_masks(masks, [other])
    assert str(caught.value) == (
        f"no volume for the masks in {masks}: no file of the sources ends in .nii or "
        ".nii.gz; name the folder or the archive of the volumes"
    )
    with pytest.raises(LabelError, match=r"or .nii.gz behind one of _seg, _segment"):
        read_masks(source, [source])


def test_a_mask_of_two_volumes_is_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_volumes(tmp_path / "in" / folder, ["1"])
    write_masks(tmp_path / "masks", ["1"])
    with pytest.raises(LabelError, match=r"a/1 and b/1 are both the volume of 1; "):
        read_masks(tmp_path / "masks", [tmp_path / "in"])


def test_two_masks_of_a_volume_are_refused(folders: tuple[Path, Path]) -> None:
    source, masks = folders
    write_masks(masks, ["1_seg"])
    with pytest.raises(LabelError, match=r"1 and 1_seg are both the mask of 1; "):
        read_masks(masks, [source])


def test_classes_are_parsed() -> None:
    assert parse_classes("IPH, intraventricular") == (
        "intraparenchymal",
        "intraventricular",
    )
    assert parse_classes("ICH") == ("any",)
    with pytest.raises(
        LabelError, match="unknown class of a mask 'epidurals'; did you"
    ):
        parse_classes("epidurals")
    with pytest.raises(LabelError, match="any is the class of every bleed"):
        parse_classes("any,subdural")


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    write_volumes(tmp_path / "in", ["1"])
    result = prepare(tmp_path / "in", "--mask-classes", "any")
    assert (result.exit_code, "is for --masks" in result.stderr) == (2, True)
    (tmp_path / "l.csv").write_text("slice_id,any\n1/0,1\n")
    result = prepare(
        tmp_path / "in", "--masks", tmp_path, "--labels", tmp_path / "l.csv"
    )
    assert (result.exit_code, "both give labels" in result.stderr) == (2, True)
