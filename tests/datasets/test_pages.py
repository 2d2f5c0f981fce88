"""Every command of the data set pages runs, on miniatures of the sets."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from ichfast.cli.main import cli
from ichfast.labels import CLASSES
from ichfast.store.store import Store
from tests.conftest import TINY_ARCH
from tests.datasets import miniatures
from tests.datasets.miniatures import Head

PAGES = Path(__file__).parents[2] / "docs" / "datasets"

SMALL = ("--arch", TINY_ARCH, "--size", "32", "--limit", "48")
"""Options behind each `train`: the last of an option counts."""


NUM_TO_RUN = 3
"""Number of commands on RSNA's page up to the one that trains."""


def commands(page: str) -> list[str]:
    """The lines of all blocks of a page that are marked as shell commands."""
    text = (PAGES / page).read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def run(line: str) -> Result:
    """Run a line of a page; training is made small."""
    program, name, *arguments = shlex.split(line, comments=True)
    assert program == "ichfast"
    small = SMALL if name == "train" else ()
    return CliRunner().invoke(cli, [name, *arguments, *small])


def run_page(page: str, first: int = 0, end: int | None = None) -> list[Result]:
    """Run commands of a page in order, all by default; each ends as the page says."""
    results = []
    for line in commands(page)[first:end]:
        result = run(line)
        refused = line.partition("# refused: ")[2]
        assert result.exit_code == (1 if refused else 0), f"{line}\n{result.output}"
        assert not refused or refused in result.stderr
        results.append(result)
    return results


@pytest.fixture(scope="module")
def rsna(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Head]]:
    """A folder with the set, its heads, and what RSNA's page makes up to the run."""
    folder = tmp_path_factory.mktemp("rsna")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with_labels = miniatures.write_rsna(folder)
        *_, trained = run_page("rsna-2019.md", 0, NUM_TO_RUN)
    assert "runs/rsna" in trained.output
    return folder, with_labels


@pytest.fixture
def folder(
    rsna: tuple[Path, list[Head]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder, with the run that RSNA's page ends with."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(rsna[0] / "runs", tmp_path / "runs")
    return tmp_path


@pytest.mark.slow
def test_rsna(rsna: tuple[Path, list[Head]], monkeypatch: pytest.MonkeyPatch) -> None:
    found, with_labels = rsna
    monkeypatch.chdir(found)
    run_page("rsna-2019.md", NUM_TO_RUN)
    store = Store(found / "rsna")
    assert len(store) == sum(len(head.slices) for head in with_labels)
    assert set(store.table["patient"]) == {head.patient for head in with_labels}
    assert len(pd.read_csv(found / "submission.csv")) % 6 == 0


@pytest.mark.slow
def test_cq500(folder: Path) -> None:
    miniatures.write_cq500(folder)
    run_page("cq500.md")
    table = Store("cq500-store").table
    # One series is kept, and two of three readers outvote the third.
    assert table.groupby("study")["series"].nunique().eq(1).all()
    assert set(table["kernel"]) == {"soft"}
    assert table["study_any"].eq(1).any()
    assert table[list(CLASSES)].isna().all(axis=None)


@pytest.mark.slow
def test_physionet(folder: Path) -> None:
    miniatures.write_physionet(folder)
    run_page("physionet-ct-ich.md")
    store = Store("ct-ich-store")
    labels = pd.read_csv("ct-ich/hemorrhage_diagnosis_raw_ct.csv")
    assert len(store) == len(labels)
    assert store.table["any"].sum() == (labels["No_Hemorrhage"] == 0).sum()


@pytest.mark.slow
def test_bhsd(folder: Path, rsna: tuple[Path, list[Head]]) -> None:
    miniatures.write_bhsd(folder, rsna[1])
    run_page("bhsd.md")
    labels_NK = Store("bhsd").labels_NK()
    expected = np.concatenate([head.labels_NK for head in rsna[1]])
    np.testing.assert_array_equal(labels_NK.sum(axis=0), expected.sum(axis=0))


@pytest.mark.slow
def test_instance22(folder: Path) -> None:
    miniatures.write_instance(folder)
    run_page("instance22.md")
    labels_NK = Store("instance22").labels_NK()
    assert not np.isnan(labels_NK[:, 0]).any()
    assert np.isnan(labels_NK[:, 1:]).all()


@pytest.mark.slow
def test_pacs(folder: Path) -> None:
    miniatures.write_pacs(folder)
    *_, by_maker, _, _, _, _ = run_page("pacs.md")
    assert "GE" in by_maker.output
    assert "Siemens" in by_maker.output
    everything, heads = Store("everything"), Store("heads")
    assert len(heads) * 2 == len(everything)
    assert set(heads.table["patient"]) == {""}


def test_the_index_has_every_page() -> None:
    index = (PAGES.parent / "datasets.md").read_text("utf-8")
    listed = re.findall(r"\(datasets/([\w-]+\.md)\)", index)
    assert sorted(listed) == sorted(path.name for path in PAGES.iterdir())
