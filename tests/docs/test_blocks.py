"""Every command and every Python block of the README and the docs runs.

The pages of data sets are run by `tests.datasets.test_pages`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ichfast.labels import CLASSES
from ichfast.report import pictures
from tests.docs.pages import DOCS, PAGES, README, ROOT, blocks
from tests.docs.places import PACS_URL, PLACES, make_originals, pacs
from tests.docs.shell import calls, run_call
from tests.sources.dicomweb_server import serving

LANGUAGES = {"sh", "python", "", "{toctree}"}

OWN_TESTS = {"frameworks.md": "tests/test_frameworks.py"}
"""Pages whose blocks need what may not be installed, and what runs them."""

HOST_OF_README = "start.md"
"""The page whose blocks README's follow: most are the same, and run once."""


def fields_of(output: str) -> set[str]:
    """The names of fields, at any depth, in JSON that may be cut off."""
    return set(re.findall(r'"(\w+)": ', output))


def shown_outputs(page: Path) -> list[tuple[str, str]]:
    """The commands whose output a page shows, each with its output."""
    shown = [
        re.findall(r"^\$ ichfast ([\w-]+).*\n(\{.*)$", text, re.MULTILINE)
        for language, text in blocks(page)
        if not language
    ]
    return [each for part in shown for each in part]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages start from. Not to be changed."""
    folder = tmp_path_factory.mktemp("originals")
    make_originals(folder)
    return folder


@pytest.fixture(scope="module")
def pacs_url(originals: Path) -> Iterator[str]:
    """The address of a server that has a study."""
    with serving(pacs(originals)) as stub:
        yield stub.url


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_block_is_of_a_language_that_is_run(page: Path) -> None:
    assert {each.language for each in blocks(page)} <= LANGUAGES


def test_every_page_with_blocks_has_a_place_and_no_other() -> None:
    with_blocks = [
        page.name
        for page in PAGES
        if page.parent != DOCS / "datasets"
        and any(each.language in ("sh", "python") for each in blocks(page))
    ]
    assert with_blocks == sorted({README.name, *OWN_TESTS, *PLACES})


def test_the_blocks_of_frameworks_run_in_tests_of_their_own() -> None:
    page = (DOCS / "frameworks.md").read_text("utf-8")
    with_blocks = [
        section.partition("\n")[0]
        for section in page.split("\n## ")
        if "```python" in section
    ]
    tests = (ROOT / OWN_TESTS["frameworks.md"]).read_text("utf-8")
    assert with_blocks
    assert [each for each in with_blocks if f'block("{each}")' not in tests] == []


@pytest.fixture
def _without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw an empty figure in place of each: the tests of `report` draw them."""
    draw = pictures.figure_png
    monkeypatch.setattr(pictures, "figure_png", lambda _: draw(Figure((1, 1))))


PRINTED = {
    "start.md": ["torch.Size([32, 3, 224, 224])", *CLASSES],
}
"""By page, parts of what its Python blocks print."""

WRITTEN = {"pacs.md": ["reports/*.sr.dcm", "reports/*.key.dcm"]}
"""By page, patterns of files that its commands write and no other command reads."""


@pytest.mark.slow
@pytest.mark.usefixtures("_without_charts")
@pytest.mark.parametrize("page", PLACES)
def test_the_blocks_of_a_page_run_in_order(
    page: str,
    originals: Path,
    pacs_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    PLACES[page](tmp_path, originals)
    outputs: dict[str, list[str]] = defaultdict(list)
    done: list[object] = []

    def run_blocks(path: Path) -> None:
        for language, text in blocks(path):
            if language == "sh":
                for call in calls(text.replace(PACS_URL, pacs_url), tmp_path):
                    if path != README or call not in done:
                        outputs[call[1]].append(run_call(*call))
                        done.append(call)
            elif language == "python" and (path != README or text not in done):
                exec(compile(text, path.name, "exec"), {})
                done.append(text)

    run_blocks(DOCS / page)
    if page == HOST_OF_README:
        run_blocks(README)
    printed = capsys.readouterr().out
    assert [part for part in PRINTED.get(page, []) if part not in printed] == []
    patterns = WRITTEN.get(page, [])
    assert [each for each in patterns if not any(tmp_path.glob(each))] == []
    for command, shown in shown_outputs(DOCS / page):
        if shown.endswith("..."):
            assert fields_of(shown) <= fields_of(outputs[command][0])
        else:
            fields = [json.loads(output).keys() for output in outputs[command]]
            assert json.loads(shown).keys() in fields


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
