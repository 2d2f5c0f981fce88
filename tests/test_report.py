"""The page stands alone, gives nothing away and tells what the figures say."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from ichfast.errors import IchfastError, PredictionError
from ichfast.evaluation import evaluate
from ichfast.predictions import LABEL_COLUMNS
from ichfast.report import CASES_A_GROUP, ReportData, write_report
from tests.test_evaluation import make_table
from tests.test_figures import make_history

HOSTILE = "<script>alert('x')</script>\"&"


def make_report(table: pd.DataFrame) -> ReportData:
    """A report whose slices are made up from the slice's id."""

    def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
        rng = np.random.default_rng(sum(map(ord, slice_id)))
        return rng.integers(1000, 1150, (24, 17), dtype=np.uint16)

    return ReportData(
        title="A run",
        history=make_history(),
        predictions=table,
        slice_of=slice_of,
        recipe={"name": "exp-10", "train": {"epochs": 20, "betas": (0.95, 0.99)}},
        environment={"gpu": None, "torch": "2.9"},
        data={"slices": 752_803, "rejected": {"truncated-pixels": 1}},
    )


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def page(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(make_report(table), tmp_path_factory.mktemp("report"))


def written(report: ReportData, folder: Path) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text("utf-8")


class Collector(HTMLParser):
    """Collects tags in order, checks that they nest, and keeps the attributes."""

    VOID = frozenset({"meta", "img", "br", "source"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an opening tag."""
        self.seen.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that what closes is what was opened last."""
        assert self.open.pop() == tag


def parsed(page: str) -> Collector:
    collector = Collector()
    collector.feed(page)
    collector.close()
    assert collector.open == []
    return collector


def text_of(page: str) -> str:
    without_style = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", without_style).split())


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    found = parsed(page)
    for _, name, value in found.attributes:
        if name in ("src", "href", "srcset", "poster", "action"):
            assert value.startswith("data:image/png;base64,")
    assert not {"script", "link", "iframe", "object", "base"} & set(found.seen)
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_summary_gives_the_figures_of_the_evaluation(
    page: str, table: pd.DataFrame
) -> None:
    level = evaluate(table).slice
    summary = text_of(page)[:700]
    assert f"Weighted log loss {level.weighted_log_loss:.4f}" in summary
    assert f"Prevalence scores {level.prevalence_loss:.4f}" in summary
    assert f"Ratio of the two {level.ratio:.3f}" in summary
    assert f"AUC of any {level.classes['any'].auc:.4f}" in summary
    assert "Slices judged 211 31 studies, 16 patients" in summary
    assert "Best epoch 5 of 5" in summary
    assert "Not a medical device" in summary


def test_data_recipe_and_environment_are_told(page: str) -> None:
    text = text_of(page)
    for told in (
        "slices 752,803",
        "rejected.truncated-pixels 1",
        "train.betas 0.95, 0.99",
        "gpu None",
    ):
        assert told in text


def test_each_group_shows_its_slices_in_three_windows(page: str) -> None:
    found = parsed(page)
    assert found.seen.count("article") == 3 * CASES_A_GROUP
    pictures = [v for tag, name, v in found.attributes if (tag, name) == ("img", "alt")]
    assert sum("window" in alt for alt in pictures) == 9 * CASES_A_GROUP


def test_the_worst_slices_come_first(table: pd.DataFrame, tmp_path: Path) -> None:
    missed = table.copy()
    sick = missed.index[missed["label_any"] == 1][0]
    missed.loc[sick, "any"] = 1e-9
    page = written(replace(make_report(missed), show_ids=True), tmp_path)
    assert page.index("Worst with hemorrhage") < page.index("<article")
    first_case = page[page.index("<article") : page.index("</article")]
    assert f"slice {missed.loc[sick, 'slice_id']}," in first_case


def test_slices_shown_as_without_hemorrhage_have_no_label(page: str) -> None:
    groups = dict(re.findall(r"<h3>(W.*?|B.*?)</h3>(.*?)(?=<h[23]>)", page, re.DOTALL))
    marked = {heading: html.count('class="yes"') for heading, html in groups.items()}
    assert marked["Worst without hemorrhage"] == 0
    assert marked["Worst with hemorrhage"] >= 2 * CASES_A_GROUP
    assert marked["Best with hemorrhage"] >= 2 * CASES_A_GROUP


def test_a_study_fills_no_group_alone(table: pd.DataFrame, tmp_path: Path) -> None:
    one_study = table.assign(study="the same")
    page = written(make_report(one_study), tmp_path)
    assert parsed(page).seen.count("article") == 3


def test_no_id_is_in_the_page_unless_asked_for(
    page: str, table: pd.DataFrame, tmp_path: Path
) -> None:
    shown = written(replace(make_report(table), show_ids=True), tmp_path)
    for column in ("slice_id", "study", "patient"):
        assert any(an_id in shown for an_id in set(table[column]))
    for column in ("slice_id", "series", "study", "patient"):
        assert not any(an_id in page for an_id in set(table[column]))


def test_hostile_text_is_escaped(table: pd.DataFrame, tmp_path: Path) -> None:
    hostile = table.assign(
        slice_id=[f"{HOSTILE}{n}" for n in range(len(table))],
        patient=HOSTILE,
    )
    report = replace(
        make_report(hostile),
        title=HOSTILE,
        history=make_history().assign(phase=HOSTILE),
        recipe={HOSTILE: {HOSTILE: HOSTILE}},
        environment={"gpu": [HOSTILE]},
        data={HOSTILE: 1},
        show_ids=True,
    )
    page = written(report, tmp_path)
    assert "script" not in parsed(page).seen
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_run_without_epochs_has_no_curves(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    page = written(replace(make_report(table), history=make_history(0)), tmp_path)
    assert "Best epoch" not in page
    assert "Training speed" not in page


def test_unlabelled_slices_are_counted_and_never_shown(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    partly = table.copy()
    partly.loc[7:, list(LABEL_COLUMNS)] = np.nan
    partly.loc[:6, list(LABEL_COLUMNS)] = 0.0
    page = written(make_report(partly), tmp_path)
    assert "204 unlabelled left out" in page
    assert "Worst with hemorrhage" not in page
    assert parsed(page).seen.count("article") == 1


def test_without_labels_there_is_no_page(table: pd.DataFrame, tmp_path: Path) -> None:
    unlabelled = table.assign(**dict.fromkeys(LABEL_COLUMNS, np.nan))
    with pytest.raises(PredictionError, match="none of the 211"):
        write_report(tmp_path / "report.html", make_report(unlabelled))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IchfastError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", make_report(table))
