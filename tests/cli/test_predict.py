"""The commands after training, with good and with bad input."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

from ichfast.evaluation.predictions import LABEL_COLUMNS, probs_NK, read_predictions
from ichfast.labels import CLASSES
from ichfast.system.checksums import with_checksum
from ichfast.system.ranks import Ranks
from ichfast.training.checkpoint import BEST
from tests.cli.test_cli import ok, refused
from tests.conftest import write_store
from tests.runs.trainedruns import write_folds, write_run

CPU = ("--device", "cpu")


@pytest.fixture(scope="module")
def place(tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, stores and predictions, good and bad."""
    path = tmp_path_factory.mktemp("runs")
    run, _ = write_folds(path, tiny_store_path)
    write_run(path / "larger", tiny_store_path, size=48)
    write_run(path / "leaking", tiny_store_path, "folds.kind=slice")
    shutil.copytree(run, path / "begun")
    (path / "begun" / BEST).unlink()
    shutil.copytree(run, path / "damaged")
    (path / "damaged" / BEST).write_bytes(b"not a checkpoint")
    write_store(path / "other", plan={"listing": "another"})
    (path / "file").write_text("")
    ok("predict", run, path / "good.csv", *CPU)
    ok("predict", path / "leaking", path / "leaking.csv", *CPU)
    table = read_predictions(path / "good.csv")
    unlabelled = table.copy()
    unlabelled[list(LABEL_COLUMNS)] = pd.NA
    unlabelled.to_csv(path / "unlabelled.csv", index=False)
    table.assign(slice_id=table["slice_id"] + "x").to_csv(
        path / "others.csv", index=False
    )
    return path


@pytest.mark.slow
def test_only_a_list_of_patients_is_predicted_and_trained_on(
    place: Path, tiny_store_path: Path, tmp_path: Path
) -> None:
    only, out, store = tmp_path / "only.txt", tmp_path / "p.csv", place / "other"
    only.write_text("P3\nP4\n")
    command = ("predict", place / "fold0", out, "--store", store, *CPU)
    assert ok(*command, "--only", only)["slices"] == 8
    assert "no file of ids at" in refused(*command, "--only", tmp_path / "none.txt")
    train = ("train", "--store", tiny_store_path, "--out", tmp_path / "run", *CPU)
    only.write_text("P4\n")
    assert "no slice with labels is in" in refused(*train, "--only", only)
    only.write_text("patient,fold\nP1,1\nP2,2\n")
    folds = ("--set", f"folds.file={only}")
    assert "have the folds 1, 2 in" in refused(*train, *folds)
    assert "no file of ids" in refused(*train, "--set", "folds.file=none.csv")
    assert "folds.fold is in 0 to 99" in refused(*train, *folds, "--fold", "100")
    assert "in fold 7: the slices" in refused(*train, *folds, "--fold", "7")
    more = ("--set", "folds.num_folds=9", "--fold", "8")
    assert "cannot make 9" in refused(*train, *more)


@pytest.mark.slow
def test_the_runs_of_all_folds_predict_their_store_out_of_fold(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all.npz"
    made = ok("predict", place / "fold0", place / "fold1", out, "--smooth", *CPU)
    assert (made["slices"], made["runs"], made["smooth"]) == (26, 2, True)
    results = ok("evaluate", out)
    assert (tmp_path / "metrics.json").read_text() == with_checksum(results)
    assert results["predictions"] == "all.npz"
    assert results["slice"]["count"] == 26
    assert results["bootstrap"]["replicates"] == 200


@pytest.mark.slow
def test_all_slices_of_its_own_store_are_predicted_on_request(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all.csv"
    assert ok("predict", place / "fold0", out, "--all", *CPU)["slices"] == 29
    assert "that the model was trained on" in refused("evaluate", out)


@pytest.mark.slow
def test_studies_are_predicted_and_refused_where_slices_are_needed(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "studies.csv"
    made = ok("predict", place / "fold0", out, "--level", "study", *CPU)
    slices = read_predictions(place / "good.csv")
    num_studies = slices["study"].nunique()
    assert (made["slices"], made["level"]) == (len(slices), "study")
    assert made["rows"] == num_studies == len(pd.read_csv(out))
    for command in (("evaluate", out), ("submit", out, tmp_path / "s.csv")):
        assert "predict again without --level" in refused(*command)


@pytest.mark.slow
def test_dicom_is_predicted_in_one_command(
    place: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new.csv"
    made = ok("predict", place / "fold0", out, "--dicom", source, *CPU)
    assert (made["slices"], made["rejected"]) == (23, {})
    assert read_predictions(out)["slice_id"].str.startswith("ID_").all()


@pytest.mark.slow
def test_a_leak_can_be_allowed_and_is_counted(place: Path) -> None:
    results = ok("evaluate", place / "leaking.csv", "--allow-leak", "--bootstrap", "0")
    assert results["leaks"]["slices"] == results["slice"]["count"]


@pytest.mark.slow
def test_runs_are_compared_and_exported(place: Path, tmp_path: Path) -> None:
    compared = ok(
        "compare", place / "fold0", place / "larger",
        "--csv", tmp_path / "runs.csv", "--png", tmp_path / "runs.png",
    )  # fmt: skip
    assert [row["name"] for row in compared["rows"]][-2:] == ["fold0", "larger"]
    assert (tmp_path / "runs.csv").is_file()
    assert (tmp_path / "runs.png").is_file()
    exported = ok("export", place / "fold0", tmp_path / "model.pt2")
    assert Path(exported["card"]).is_file()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict nowhere new.csv", "make one with `ichfast train`"),
        ("predict begun new.csv", "no epoch is finished"),
        ("predict damaged new.csv", "damaged or no checkpoint"),
        ("predict fold0 fold0 new.csv", "name each run once"),
        ("predict fold0 new.txt", "predictions are .parquet, .csv or .npz files"),
        ("predict fold0 file/new.csv", "name another file"),
        ("predict fold0 new.csv --store nowhere", "ichfast prepare"),
        ("predict fold0 new.csv --dicom nowhere", "nowhere"),
        ("predict fold0 new.csv --dicom file", "is an axial CT slice"),
        ("features nowhere new", "make one with `ichfast train`"),
        ("features fold0 larger new", "one arch, size and windows"),
        ("features fold0 fold1 new --store other", "was not trained on other"),
        ("features fold0 leaking new", "has folds of slices, which cut series"),
        ("features fold0 file", "holds other files"),
        ("evaluate nowhere.csv", "make them with `ichfast predict"),
        ("evaluate unlabelled.csv", "prepare --labels"),
        ("evaluate leaking.csv", "add --allow-leak"),
        ("submit nowhere.csv out.csv", "make them with `ichfast predict"),
        ("submit good.csv file/out.csv", "cannot write"),
        ("report fold0 --predictions others.csv", "are not in"),
        ("compare nowhere", "make one with `ichfast train`"),
        ("compare fold0 --csv file/runs.csv", "cannot write"),
        ("export nowhere model.pt2", "make one with `ichfast train`"),
        ("export begun model.pt2", "no epoch is finished"),
        ("export fold0 model.bin", ".pt2 or .onnx"),
        ("export fold0 file/model.pt2", "cannot write"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    command: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    device = CPU if command.startswith(("predict", "report", "features")) else ()
    before = sorted(place.iterdir())
    assert message in refused(*command.split(), *device)
    (place / "new.csv.rejected.csv").unlink(missing_ok=True)
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--store other --dicom file", "not both"),
        ("--keep-ids", "goes with --dicom"),
        ("--batch-size 0", "expected auto or a number from 1"),
        ("--batch-size many", "expected auto or a number from 1"),
    ],
)
def test_options_that_exclude_each_other_are_a_usage_error(
    options: str, message: str, place: Path
) -> None:
    out = place / "new.csv"
    line = refused("predict", place / "fold0", out, *options.split(), status=2)
    assert message in line


def test_dicom_takes_one_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = nullcontext(Ranks(0, 2))
    monkeypatch.setattr("ichfast.cli.predict.joined_ranks", lambda _device: ranks)
    command = ("predict", place / "fold0", place / "new.csv", "--dicom", place, *CPU)
    assert "--dicom takes one process" in refused(*command, status=2)


def test_a_stopped_command_says_that_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ichfast.predict.networks.open_journal", stop)
    for command in ("predict", "features"):
        line = refused(command, place / "fold0", place / "new.csv", *CPU)
        assert "stopped; the same command goes on where it was" in line


def test_a_blend_does_not_replace_what_it_reads(place: Path) -> None:
    good = place / "good.csv"
    assert "would be replaced" in refused("blend", good, good, good, status=2)


@pytest.mark.slow
def test_predictions_are_blended(place: Path, tmp_path: Path) -> None:
    good, out = place / "good.csv", tmp_path / "blend.csv"
    made = ok("blend", good, good, out)
    assert made["weights"] == {name: [0.5, 0.5] for name in CLASSES}
    table = read_predictions(out)
    assert probs_NK(table).tolist() == probs_NK(read_predictions(good)).tolist()
    assert (tmp_path / "blend.csv.weights.json").is_file()
