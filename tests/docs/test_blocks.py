"""Every command and every Python block of the README and the docs runs.

The pages of data sets are run by `tests.datasets.test_pages`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ichfast.labels import CLASSES
from tests.docs.pages import DOCS, PAGES, blocks
from tests.docs.places import PLACES, make_originals
from tests.docs.shell import calls, run_call

LANGUAGES = {"sh", "python", "", "{toctree}"}

WITH_BLOCKS = [
    page
    for page in PAGES
    if page.parent != DOCS / "datasets"
    and any(each.language in ("sh", "python") for each in blocks(page))
]


def fields_of(output: str) -> set[str]:
    """The names of fields, at any depth, in JSON that may be cut off."""
    return set(re.findall(r'"(\w+)": ', output))


def shown_fields(page: Path) -> list[tuple[str, set[str]]]:
    """The commands whose output a page shows, each with the fields in it."""
    shown = [
        re.findall(r"^\$ ichfast ([\w-]+).*\n(\{.*)$", text, re.MULTILINE)
        for language, text in blocks(page)
        if not language
    ]
    return [(command, fields_of(line)) for part in shown for command, line in part]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages start from. Not to be changed."""
    folder = tmp_path_factory.mktemp("originals")
    make_originals(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_is_of_a_language_that_is_run(page: Path) -> None:
    assert {each.language for each in blocks(page)} <= LANGUAGES


def test_every_page_with_blocks_has_a_place_and_no_other() -> None:
    assert [page.name for page in WITH_BLOCKS] == list(PLACES)


PRINTED = {
    "README.md": ["torch.Size([32, 3, 224, 224])"],
    "start.md": ["torch.Size([32, 3, 224, 224])", *CLASSES],
}
"""By page, parts of what its Python blocks print."""


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(
    page: Path,
    originals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    PLACES[page.name](tmp_path, originals)
    output: dict[str, str] = {}
    for language, text in blocks(page):
        if language == "sh":
            for call in calls(text, tmp_path):
                output[call[1]] = run_call(*call)
        elif language == "python":
            exec(compile(text, page.name, "exec"), {})
    printed = capsys.readouterr().out
    for command, fields in shown_fields(page):
        assert fields <= fields_of(output[command]), command
    assert [part for part in PRINTED.get(page.name, []) if part not in printed] == []


def test_bash_reads_a_block(tmp_path: Path) -> None:
    text = """#!/bin/bash
    #SBATCH --nodes=2
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun --kill torchrun --endpoint "$head:29500" \\
        -m ichfast train    # two words
    ichfast prepare "two words" 'kernel != bone'
    """
    assert calls(text, tmp_path) == [
        ["torchrun", "--endpoint", "node1:29500", "-m", "ichfast", "train"],
        ["ichfast", "prepare", "two words", "kernel != bone"],
    ]


@pytest.mark.parametrize(
    "call",
    [
        "make no-such-target",
        "python -m pip install .[no_such_extra]",
        "python -m pip install another",
        "torchrun -m another train",
        "ichfast recipes no-such-recipe",
    ],
)
def test_a_wrong_command_fails(call: str) -> None:
    with pytest.raises(AssertionError):
        run_call(*call.split())
