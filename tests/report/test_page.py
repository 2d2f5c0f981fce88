"""The page is self-contained, shows no id, and shows the figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from ichfast.errors import IchfastError, PredictionError
from ichfast.evaluation.bootstrap import REPLICATES
from ichfast.evaluation.cases import choose_cases
from ichfast.evaluation.curves import operating_point
from ichfast.evaluation.evaluation import evaluate
from ichfast.evaluation.predictions import LABEL_COLUMNS, labels_NK, probs_NK
from ichfast.evaluation.study_cases import choose_studies
from ichfast.evaluation.subgroups import evaluate_subgroups
from ichfast.labels import CLASSES
from ichfast.report.page import ReportData, write_report
from tests.evaluation.planted import calibration_of, plant
from tests.evaluation.test_evaluation import make_table, scores_of
from tests.evaluation.test_missing_labels import of_studies
from tests.evaluation.test_optional_columns import with_added
from tests.report import browser
from tests.report.charts.test_style import make_history

CALIBRATION = calibration_of(plant(20), factor=3.0, shift=1.0)

HOSTILE = "<script>alert('x')</script>\"&"


def make_report(table: pd.DataFrame) -> ReportData:
    """A report whose slices are made up from the slice's id."""

    def slice_of(slice_id: str) -> npt.NDArray[np.uint16]:
        rng = np.random.default_rng(sum(map(ord, slice_id)))
        return rng.integers(1000, 1150, (24, 17), dtype=np.uint16)

    def activations_of(slice_ids: Sequence[str]) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng(0)
        return rng.random((len(slice_ids), 6, 3, 2), dtype=np.float32)

    return ReportData(
        title="A run",
        history=make_history(),
        predictions=table,
        slice_of=slice_of,
        activations_of=activations_of,
        recipe={
            "name": "exp-10",
            "train": {"betas": (0.95, 0.99), "phases": [{"epochs": 20}]},
        },
        environment={"gpu": None, "torch": "2.9"},
        data={"slices": 752_803, "rejected": {"truncated-pixels": 1}},
    )


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def page_path(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(out, replace(make_report(table), calibration=CALIBRATION))
    return out


@pytest.fixture(scope="module")
def page(page_path: Path) -> str:
    return page_path.read_text("utf-8")


@pytest.fixture(autouse=True)
def blank_charts(page_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page but the first has empty charts: drawing takes seconds."""
    assert page_path.exists()
    monkeypatch.setattr("ichfast.report.charts.captions.chart_png", lambda _: b"")


def written(report: ReportData, folder: Path) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text("utf-8")


class Collector(HTMLParser):
    """Collects tags in order, checks that they nest, and keeps the attributes."""

    VOID = frozenset({"meta", "img", "br", "source", "input"})

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


def slices_of(page: str) -> str:
    """The part of a page with the slices to look at."""
    return page[page.index('<section class="cards">') : page.index('<h2 id="made">')]


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    found = parsed(page)
    for _, name, value in found.attributes:
        if name in ("src", "srcset", "poster", "action"):
            assert re.match("data:image/(png|jpeg);base64,", value)
        if name == "href":
            assert value.startswith("#")
    assert not {"script", "link", "iframe", "object", "base"} & set(found.seen)
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


@pytest.mark.slow
def test_the_summary_gives_the_figures_of_the_evaluation(
    page: str, table: pd.DataFrame
) -> None:
    evaluation = evaluate(table)
    level = evaluation.first
    summary = text_of(page)[:1000]
    assert f"Weighted log loss {level.weighted_log_loss:.4f}" in summary
    assert f"Ratio to prevalence {level.ratio:.3f}" in summary
    assert f"of {level.prevalence_loss:.4f}, the best constant" in summary
    assert f"AUC of any {scores_of(evaluation, 'any').auc:.4f}" in summary
    assert "Slices evaluated 211 31 studies, 16 patients" in summary
    assert "Best epoch 5 of 5" in summary
    assert "Not a medical device" in summary


def test_data_recipe_and_environment_are_on_the_page(page: str) -> None:
    text = text_of(page)
    for told in (
        "slices 752,803",
        "rejected.truncated-pixels 1",
        "train.betas 0.95, 0.99",
        "train.phases.0.epochs 20",
        "gpu None",
    ):
        assert told in text


def test_the_folds_are_shown_with_their_positives(
    page: str, table: pd.DataFrame
) -> None:
    row = text_of(page).split("Fold evaluated")[1].split("Data")[0]
    assert f"subdural {table['fold'].iloc[0]} " in row
    for positives in labels_NK(table).sum(axis=0).astype(int):
        assert f" {positives} ({100 * positives / len(table):.1f}%)" in row


def test_links_lead_to_places_in_the_page(page: str) -> None:
    found = parsed(page)
    places = {value for _, name, value in found.attributes if name == "id"}
    links = {value[1:] for _, name, value in found.attributes if name == "href"}
    assert links == places


@pytest.mark.slow
def test_a_calibrated_run_shows_its_calibration_and_thresholds(
    page: str, table: pd.DataFrame, tmp_path: Path
) -> None:
    text = text_of(page).split("Calibration Temperatures,")[1].split("By class")[0]
    assert "chosen on 640 slices of 20 patients" in text
    assert f"log loss was {CALIBRATION.loss_before:.4f}; calibrated by the " in text
    assert f"patients it is {CALIBRATION.loss_crossfitted:.4f}." in text
    calibration, thresholds = text.split("Thresholds")
    assert "reaches a sensitivity of 95% on these slices" in thresholds
    for each in CALIBRATION.classes:
        assert f" {each.temperature:.3f} {each.bias:.3f} " in calibration
        assert each.threshold is not None
        low, high = each.threshold.interval or (0, 0)
        shown = f"{each.threshold.probability:.4f} ({low:.4f} to {high:.4f})"
        assert f"{each.name} {shown} {100 * each.threshold.sensitivity:.1f}%" in (
            thresholds
        )
    planted = plant(20)
    planted.labels_NK[:, 3] = np.nan
    report = replace(make_report(table), calibration=calibration_of(planted))
    without = "intraventricular stays as it is: no slice has a label of it."
    assert without in text_of(written(report, tmp_path))
    assert "Calibration Temp" not in text_of(written(make_report(table), tmp_path))


@pytest.mark.slow
def test_each_class_shows_its_operating_point(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    text = text_of(written(replace(make_report(table), sensitivity=0.8), tmp_path))
    found = text.split("Found and missed")[-1].split("By class")[0]
    for k, name in enumerate(CLASSES):
        point = operating_point(
            probs_NK(table)[:, k], labels_NK(table)[:, k], sensitivity=0.8
        )
        assert point is not None
        assert (
            f"{name} from {point.threshold:.4f} on labelled not labelled "
            f"called {point.found} found {point.false_alarms} false alarms "
            f"not called {point.missed} missed {point.left_alone} left alone"
        ) in found
    assert "finds at least 80% of its positive slices" in found


def test_each_group_shows_its_slices_in_two_windows_under_a_heat_map(
    page: str, table: pd.DataFrame
) -> None:
    found = parsed(slices_of(page).partition('<h2 id="training">')[0])
    num_cases = sum(len(group.rows) for group in choose_cases(table))
    assert found.seen.count("article") == num_cases
    alts = [v for tag, name, v in found.attributes if (tag, name) == ("img", "alt")]
    assert sum("brain window" in alt for alt in alts) == num_cases
    assert sum("subdural window" in alt for alt in alts) == num_cases
    assert found.attributes.count(("img", "class", "heat")) == 2 * num_cases


@pytest.mark.slow
def test_the_worst_slices_come_first_with_their_outcome(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    missed = table.copy()
    sick = missed.index[missed["label_any"] == 1][0]
    missed.loc[sick, "any"] = 1e-9
    page = slices_of(written(replace(make_report(missed), show_ids=True), tmp_path))
    assert page.index("Worst of any") < page.index("<article")
    first_case = page[page.index("<article") : page.index("</article")]
    assert f"slice {missed.loc[sick, 'slice_id']}," in first_case
    assert text_of(first_case).startswith("1 missed")


def test_slices_shown_as_best_are_labelled(page: str) -> None:
    for name in CLASSES:
        best = page.split(f"<h3>Best of {name}</h3>")[1]
        best = re.split("</details>|<h3>", best)[0]
        assert best.count('class="yes asked"') == best.count("<article") > 0


@pytest.mark.slow
def test_notices_come_before_the_figures(table: pd.DataFrame, tmp_path: Path) -> None:
    report = replace(make_report(table), notices=["Patients are on both sides."])
    summary = text_of(written(report, tmp_path))[:300]
    assert "Patients are on both sides." in summary


@pytest.mark.slow
def test_no_id_is_in_the_page_unless_asked_for(
    page: str, table: pd.DataFrame, tmp_path: Path
) -> None:
    shown = written(replace(make_report(table), show_ids=True), tmp_path)
    for column in ("slice_id", "study", "patient"):
        assert any(an_id in shown for an_id in set(table[column]))
    for column in ("slice_id", "series", "study", "patient"):
        assert not any(an_id in page for an_id in set(table[column]))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_without_epochs_has_no_curves(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    page = written(replace(make_report(table), history=make_history(0)), tmp_path)
    assert "Best epoch" not in page
    assert "Training speed" not in page


@pytest.mark.slow
def test_unlabelled_slices_are_counted_and_never_shown(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    partly = table.copy()
    partly.loc[7:, list(LABEL_COLUMNS)] = np.nan
    partly.loc[:6, list(LABEL_COLUMNS)] = 0.0
    page = written(make_report(partly), tmp_path)
    assert "204 unlabelled left out" in page
    assert "Worst of any" in page
    assert "Best of any" not in page
    assert parsed(page).seen.count("article") == len(CLASSES)  # and no study
    assert text_of(page).count("No slice has it.") == len(CLASSES)


def test_without_labels_there_is_no_page(table: pd.DataFrame, tmp_path: Path) -> None:
    unlabelled = table.assign(**dict.fromkeys(LABEL_COLUMNS, np.nan))
    with pytest.raises(PredictionError, match="none of the 211"):
        write_report(tmp_path / "report.html", make_report(unlabelled))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_path_that_cannot_be_written_is_an_error(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IchfastError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", make_report(table))


in_a_browser = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="no Chromium on this machine"
)


@in_a_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_or_fails_to_load(
    page_path: Path, page: str, width: int, dark: bool
) -> None:
    found = browser.measure(page_path, width=width, dark=dark)
    assert found["width"] == found["scroll_width"] == width
    assert found["overflowing"] == []
    assert found["images"] == page.count("<img") > 100
    assert found["broken"] == []
    assert found["fetched"] == []
    red = int(found["background"].split("(")[1].split(",")[0])
    assert (red < 64) == dark


@in_a_browser
def test_the_summary_fits_one_screen(page_path: Path) -> None:
    assert browser.measure(page_path, width=1280)["summary_bottom"] < 720


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_screenshot_shows_the_page(
    page_path: Path, tmp_path: Path, width: int
) -> None:
    browser.screenshot(page_path, tmp_path / "page.png", width=width, height=2000)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (width, 2000)
        grey_HW = np.asarray(picture.convert("L"))
    for quarter in np.split(grey_HW, 4):
        assert quarter.std() > 5  # something is drawn everywhere


@in_a_browser
def test_a_broken_page_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        """<!DOCTYPE html><meta http-equiv="Content-Security-Policy"
        content="style-src 'unsafe-inline'">
        <body><div style="width: 500px">too wide</div>
        <img src="http://127.0.0.1:9/" alt="gone">
        </body>"""
    )
    found = browser.measure(page, width=390)
    assert found["scroll_width"] > 390
    assert found["overflowing"] == ["DIV. too wide"]
    assert found["broken"] == ["gone"]
    assert found["fetched"] == ["http://127.0.0.1:9/"]


@pytest.mark.slow
def test_the_studies_to_look_at_are_drawn(table: pd.DataFrame, tmp_path: Path) -> None:
    page = written(replace(make_report(table), sensitivity=0.8), tmp_path)
    studies = page[
        page.index('<h2 id="studies">') : page.index('<section class="cards">')
    ]
    found = parsed(studies)
    cases = choose_studies(table, sensitivity=0.8)
    assert cases is not None
    point = cases.point
    text = text_of(studies)
    assert (
        f"Set to find 80% of the studies with hemorrhage, it finds {point.found} of "
        f"{point.found + point.missed} and misses {point.missed}. Of "
    ) in text
    assert point.missed > 0
    assert text.count(" missed ") == min(point.missed, len(cases.positive))
    num_cases = len(cases.positive) + len(cases.negative)
    assert found.seen.count("article") == found.seen.count("svg") == num_cases
    assert found.seen.count("img") == 2 * num_cases
    num_stretches = sum(
        int((np.diff((case.series.labels_Z == 1).astype(int), prepend=0) == 1).sum())
        for case in (*cases.positive, *cases.negative)
    )
    assert found.seen.count("rect") == num_stretches > 0
    assert ("line", "class", "head") not in found.attributes
    (warning,) = re.findall("Warning: ([^<]*)", studies)
    assert warning == f"{evaluate(table).warning_of('study')}."


@pytest.mark.slow
def test_series_probabilities_and_disagreement_are_on_the_page_if_there_are_any(
    table: pd.DataFrame, page: str, tmp_path: Path
) -> None:
    added = written(make_report(with_added(table)), tmp_path)
    parsed(added)
    for text in (
        "this series by its head",
        "Dashed: the probability that the head gives",
        "The probability of a series is that of the head that reads it",
        "Disagreement of the runs",
        "By slice, series, study and patient",
        'class="head"',
    ):
        assert text in added
        assert text not in page
    assert "The probability of a study or patient is the maximum" in page


@pytest.mark.slow
def test_few_negative_studies_are_a_warning_beside_their_figures(
    table: pd.DataFrame, page: str, tmp_path: Path
) -> None:
    warnings = evaluate(table).warnings
    levels = text_of(page).partition("By slice, study and patient")[2]
    for warning in warnings:
        assert f"Warning: {warning}." in levels
    assert "Warning" not in text_of(page)[:1000]
    assert len(warnings) == 2
    by_study = written(make_report(of_studies(table)), tmp_path)
    assert f"Warning: {warnings[0]}." in text_of(by_study)[:500]


def test_groups_have_figures_or_a_reason(tmp_path: Path) -> None:
    table = make_table(42 * 14)
    sizes = {"GE": 20, "Siemens": 20, "unknown": 2}
    names = [name for name, size in sizes.items() for _ in range(14 * size)]
    kinds = pd.CategoricalDtype(list(sizes), ordered=True)
    groups = pd.Series(names, table.index).astype(kinds)
    report = replace(make_report(table), groups={"manufacturer": groups})
    page = written(report, tmp_path)
    parsed(page)
    text = text_of(page)
    assert "By group" in text
    ge, _, unknown = evaluate_subgroups(
        table, groups, level="slice", replicates=REPLICATES
    )
    assert ge.scores is not None
    loss = ge.scores.weighted_log_loss
    assert f"GE 280 20 {ge.positives} {loss:.4f}" in text
    assert f"unknown 28 2 {unknown.positives} none: fewer than 10 patients" in text
    assert "By group" not in text_of(written(make_report(table), tmp_path))
