"""The command line: one JSON line on stdout, one line for an error, light help."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import ichfast
from ichfast.cli.main import cli, main
from ichfast.system.checksums import with_checksum
from ichfast.system.terminal import printable_lines

DATA = Path(__file__).parents[3] / "shared" / "data"
TINY = [
    "--arch", "efficientnet-b0", "--size", "32", "--set", "train.epochs=1",
    "--set", "data.batch_size=8", "--device", "cpu",
]  # fmt: skip


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def ok(*arguments: str | Path) -> dict[str, Any]:
    """Run a command that must succeed; its one line of JSON."""
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def refused(*arguments: str | Path, status: int = 1) -> str:
    """Run a command that must fail; the last line of what it says."""
    result = run(*arguments)
    assert result.exit_code == status, (result.stdout, result.stderr)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 small synthetic slices of a dozen patients, and their labels."""
    out = tmp_path_factory.mktemp("heads") / "synth"
    ok("synth", out, "--slices", "240", "--size", "64")
    return out


@pytest.fixture(scope="module")
def store(heads: Path) -> Path:
    """Their store."""
    out = heads.parent / "store"
    ok(
        "prepare", heads / "dicom", "--labels", heads / "labels.csv",
        "--store", out, "--workers", "1", "--keep-ids",
    )  # fmt: skip
    return out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, ichfast.cli.main; "
        "heavy = {'torch', 'nvidia.dali', 'pydicom', 'numpy', 'pandas'}; "
        "found = heavy & set(sys.modules); "
        "sys.exit(f'imported {sorted(found)}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", cli.commands)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert len(result.stdout) > 150


def test_the_version_is_that_of_the_changelog() -> None:
    changelog = Path(__file__).parents[2] / "CHANGELOG.md"
    headings = [
        line for line in changelog.read_text().splitlines() if line[:3] == "## "
    ]
    assert headings[0].split()[1] == ichfast.__version__
    assert ichfast.__version__ in run("--version").stdout


@pytest.mark.slow
def test_from_dicom_to_submission_on_synthetic_heads(
    store: Path, tmp_path: Path
) -> None:
    out, predictions = tmp_path / "run", tmp_path / "predictions.csv"
    trained = ok("train", "--store", store, "--out", out, "--cache", "host", *TINY)
    assert trained["epochs"] == 1
    predicted = ok("predict", out, predictions, "--device", "cpu", "--tta", "flips")
    judged = ok("evaluate", predictions, "--bootstrap", "20")
    assert judged["slice"]["count"] == predicted["slices"] > 0
    assert judged["bootstrap"]["replicates"] == 20
    assert judged["leaks"] == {"slices": 0, "patients": 0, "unknown": 0}
    assert (tmp_path / "metrics.json").read_text() == with_checksum(judged)
    submitted = ok("submit", predictions, tmp_path / "submission.csv")
    assert submitted["rows"] == 6 * predicted["slices"]
    page = ok("report", out, "--predictions", predictions, "--device", "cpu")
    assert Path(page["report"]).stat().st_size > 100_000
    assert ok("verify", store)["problems"] == 0


@pytest.mark.slow
def test_real_slices_go_all_the_way(tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("needs the real slices beside the repository")
    store, out = tmp_path / "store", tmp_path / "run"
    series = [DATA / "rsna_series" / f"{name}.tar.xz" for name in (
        "ID_7518324893", "ID_5f8484c3e0", "ID_a52a0112d5",
    )]  # fmt: skip
    made = ok(
        "prepare", *series, DATA / "rsna_slices", "--keep-ids",
        "--labels", DATA / "labels" / "train_long.csv", "--store", store,
    )  # fmt: skip
    assert (made["slices"], made["labelled"], made["rejected"]) == (100, 72, {})
    ok("train", "--store", store, "--out", out, "--limit", "40", *TINY)
    predictions = tmp_path / "predictions.parquet"
    predicted = ok("predict", out, predictions, "--device", "cpu", "--tta", "reference")
    assert ok("evaluate", predictions)["slice"]["count"] == predicted["slices"]
    submission = tmp_path / "submission.csv"
    ok("submit", predictions, submission)
    lines = submission.read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert len(lines) == 1 + 6 * predicted["slices"]


@pytest.mark.slow
def test_preparing_again_does_nothing(heads: Path, store: Path) -> None:
    again = ok(
        "prepare", heads / "dicom", "--labels", heads / "labels.csv",
        "--store", store, "--workers", "1", "--keep-ids",
    )  # fmt: skip
    assert again["already_finished"] is True


@pytest.mark.slow
def test_interrupted_training_resumes(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ichfast", "train", "--store", str(store),
               "--out", str(out), *TINY,
               "--limit", "48", "--set", "train.epochs=4"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 1: "):
                process.terminate()
                break
        rest = process.stderr.read()
        assert process.wait(timeout=600) == 1
    _, printed = rest.splitlines()[-1].split("continue with: python -m ichfast ")
    assert ok(*shlex.split(printed))["epochs"] == 4


@pytest.mark.slow
def test_all_folds_are_trained_and_summarized(store: Path, tmp_path: Path) -> None:
    command: tuple[str | Path, ...]
    command = ("train", "--store", store, "--out", tmp_path / "folds", *TINY,
               "--fold", "all", "--set", "folds.num_folds=2",
               "--limit", "24")  # fmt: skip
    report = ok(*command)
    assert [Path(fold["run"]).name for fold in report["folds"]] == ["fold-0", "fold-1"]
    assert "holds a run already" in refused(*command)
    assert ok(*command, "--resume") == report


@pytest.mark.slow
def test_cuda_graphs_without_a_gpu_are_one_line(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    setting = "train.cuda_graphs=true"
    message = refused("train", "--store", store, "--out", out, *TINY, "--set", setting)
    assert message.endswith(f"is on the CPU; leave out {setting}")


def test_a_mistake_is_one_line_that_says_what_to_do(
    store: Path, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    none = tmp_path / "none"
    assert "none" in refused("prepare", none, "--store", tmp_path / "store")
    assert "nothing" in refused("prepare", nothing, "--store", none)
    assert not none.exists()
    assert "ichfast prepare" in refused("train", "--store", none, *TINY)
    assert "ichfast prepare" in refused("train", "--store", nothing, *TINY)
    assert "did you mean resnext50" in refused("train", "--arch", "resnext5")
    assert "known are exp-00" in refused("train", "--recipe", "nope")
    assert "'none', 'host', 'device'" in refused("train", "--cache", "gpu", status=2)
    assert "0 to 4" in refused("train", "--fold", "9", "--store", store)
    for fold in ("x", "1.5", "-1", ""):
        message = refused("train", "--fold", fold, status=2)
        assert f"'--fold': expected all or a number from 0, found '{fold}'" in message
    message = refused("train", "--recipe", "exp-10-tfl", "--store", store)
    assert "exp-10-tfl starts from runs/exp-10/best.pt, which is not there" in message
    assert "no run in" in refused("predict", none, tmp_path / "p.csv")
    assert ".csv or .npz" in refused("predict", none, tmp_path / "p.txt")
    assert "ichfast predict" in refused("evaluate", tmp_path / "p.csv")
    assert "is no label file of a known form" in refused(
        "prepare", nothing, "--labels", Path(__file__), "--store", none
    )
    assert "--keep-ids hashes nothing" in refused(
        "prepare", nothing, "--keep-ids", "--id-key", none, "--store", none
    )
    assert "--id-key is for --repair" in refused(
        "verify", store, "--id-key", __file__, status=2
    )
    assert "expected numbers" in refused(
        "prepare", nothing, "--levels", "big", status=2
    )


@pytest.mark.parametrize("option", [(), ("--repair", "source")])
def test_verify_refuses_what_is_no_store_in_one_line(
    option: tuple[str, ...], tmp_path: Path
) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("text")
    for place in (empty, file, tmp_path / "none"):
        result = run("verify", place, *option)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"Error: {place} is not a slice store (no readable store.json); make one "
            f"with `ichfast prepare SOURCE --store {place}`\n"
        )


@pytest.mark.slow
def test_a_result_does_not_replace_a_file_of_another_kind(
    store: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for command in (
        ("preview", store, kept),
        ("inspect", store, "--sheet", kept),
        ("submit", tmp_path / "p.csv", kept),
        ("report", tmp_path, "--out", kept),
        ("compare", tmp_path, "--png", kept),
    ):
        assert "found 'kept.txt'" in refused(*command, status=2)
    table = tmp_path / "p.csv"
    assert "would be replaced" in refused("submit", table, table, status=2)
    message = refused("train", "--store", store, "--out", kept, *TINY)
    assert message.endswith("File exists; name another one")
    assert kept.read_text() == "mine"


def test_training_without_labels_says_how_to_get_them(
    heads: Path, tmp_path: Path
) -> None:
    store = tmp_path / "unlabelled"
    ok("prepare", heads / "dicom", "--store", store, "--limit", "40", "--workers", "1")
    message = refused("train", "--store", store, "--out", tmp_path / "run", *TINY)
    assert "has no labels; add them with `ichfast prepare SOURCE... --store" in message
    command = ("prepare", heads / "dicom", "--store", store, "--limit", "40",
               "--append", "--labels")  # fmt: skip
    result = run(*command, heads / "labels.csv")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == (
        "labels: form long, joined by slice, 1,464 rows, 24 repeated, classes any, "
        "epidural, intraparenchymal, intraventricular, subarachnoid, subdural; "
        "columns left out: none"
    )
    assert json.loads(result.stdout)["labelled"] == 40
    first = (heads / "labels.csv").read_text().splitlines()[1]
    assert first.endswith("epidural,0")
    changed = tmp_path / "changed.csv"
    slice_id = first.removesuffix("_epidural,0")
    changed.write_text(f"id,any,epidural\n{slice_id}.dcm,1,1\n")
    assert "add --relabel to replace the store's" in refused(*command, changed)
    assert ok(*command, changed, "--relabel")["relabelled"] == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("--debug", "evaluate", tmp_path / "none.csv")
    assert result.exit_code == 1
    assert result.exc_info is not None
    assert "PredictionError" in repr(result.exception)


def test_recipes_can_be_listed_and_shown() -> None:
    assert "exp-10-mixup" in run("recipes").stdout
    assert "augment.max_zoom = 1.4" in run("recipes", "exp-30").stdout
    assert "known are" in refused("recipes", "nope")


def test_control_characters_are_escaped() -> None:
    shown = printable_lines("a \x1b]0;t\x07 \x9b2J \u202e \ud800 \u00e9\n")
    assert shown == "a \\x1b]0;t\\x07 \\x9b2J \\u202e \\ud800 \u00e9\n"


def test_an_error_shows_no_control_characters(tmp_path: Path) -> None:
    assert "\\x1b[2J" in refused("evaluate", tmp_path / "\x1b[2J.csv")


def test_ctrl_c_before_the_command_begins_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ichfast.cli.main.cli", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == "Aborted!"
