"""An exported model equals `ichfast predict`, and its card describes it."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ichfast.errors import CheckpointError, ModelError
from ichfast.evaluation.calibration import Calibration
from ichfast.evaluation.predictions import probs_NK
from ichfast.export import export
from ichfast.export.card import card_path, format_card
from ichfast.export.export import (
    CALIBRATION_ENTRY,
    CALIBRATION_FILE,
    ONNX_PACKAGES,
    export_run,
    hu_module,
)
from ichfast.export.module import HuToProbs
from ichfast.labels import CLASSES
from ichfast.loading.config import DataConfig, no_normalization
from ichfast.loading.loader import make_loader
from ichfast.models.build import build_model
from ichfast.predict.ensemble import predict_runs
from ichfast.runs.record import read_record, write_record
from ichfast.runs.trained import open_run
from ichfast.store.store import Store
from ichfast.windows import Normalization, Window, parse_window
from tests.conftest import TINY_ARCH, write_store
from tests.evaluation.planted import calibration_of, plant
from tests.models import test_timm
from tests.runs.trainedruns import write_run

CPU = torch.device("cpu")


def whole_slices(store: Store) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.flatnonzero((store.table["rows"] == 512).to_numpy())


def stack_hu(
    store: Store, positions: np.ndarray[tuple[int], np.dtype[np.intp]]
) -> torch.Tensor:
    stored = np.stack([store.slice_HW(int(position)) for position in positions])
    return torch.from_numpy(stored.astype(np.float32) - store.header.hu_offset)


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny store as another one, so that a run predicts all of its slices."""
    path = tmp_path_factory.mktemp("other") / "store"
    write_store(path, plan={"listing": "another"})
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "assignments"),
    [
        (64, ()),
        (72, ("data.level=512",)),
        (72, ("data.level=256", "data.windows=40/80/sigmoid")),
        (288, ("data.windows=brain", "data.normalize=imagenet")),
    ],
)
def test_the_module_equals_predict(
    size: int,
    assignments: tuple[str, ...],
    tiny_store_path: Path,
    other_store: Path,
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, *assignments, size=size)
    predicted = probs_NK(predict_runs([run], device=CPU, store_path=other_store))
    with Store(other_store) as store:
        positions = whole_slices(store)
        hu_BHW = stack_hu(store, positions)
    with torch.inference_mode():
        found = hu_module(open_run(run))(hu_BHW).numpy()
    assert predicted[positions].std(axis=0).max() > 0.01  # not the same for all slices
    np.testing.assert_allclose(found, predicted[positions], atol=1e-4)


@pytest.mark.parametrize(("level", "size"), [(512, 96), (512, 256), (256, 224)])
def test_the_images_are_those_of_the_loader(
    level: int, size: int, tiny_store: Store
) -> None:
    positions = whole_slices(tiny_store)[:5]
    window = Window(center=600, width=2800)
    config = DataConfig(size=size, batch_size=5, level=level, windows=("600/2800",))
    with make_loader(tiny_store, positions, config) as loader:
        (batch,) = loader.epoch(0)
    graph = HuToProbs(
        nn.Identity(),
        size=size,
        level=level,
        windows=[window],
        normalization=Normalization(mean=(0.0,), std=(1.0,)),
        slab_depth=1,
    )
    found = graph(stack_hu(tiny_store, positions)).double().logit()
    difference_hu = (found - batch.images_BCHW.double()).abs() * window.width
    assert difference_hu.max() < 2.5  # one HU, and the steps of float16
    assert (difference_hu > 0.5).double().mean() < 1e-3  # ties of a rounding


@pytest.mark.slow
def test_a_written_model_runs_for_any_number_of_slices(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path)
    report = export_run(run, tmp_path / "new" / "model.pt2")
    assert report.input_shape == ("slices", 512, 512)
    model = torch.export.load(report.model).module()
    with Store(tiny_store_path) as store:
        hu_BHW = stack_hu(store, whole_slices(store)[:3])
    expected = hu_module(open_run(run))(hu_BHW)
    torch.testing.assert_close(model(hu_BHW), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(hu_BHW[:1]), expected[:1], atol=1e-5, rtol=0)


def calibrate(run: Path) -> Calibration:
    """Give a run a calibration in which one class stays as it is."""
    planted = plant(10)
    planted.labels_NK[:, 3] = np.nan
    calibration = calibration_of(planted, factor=3.0, shift=1.0)
    write_record(run, replace(read_record(run), calibration=calibration))
    return calibration


@pytest.mark.slow
def test_a_calibrated_run_exports_calibrated_probabilities_and_thresholds(
    tiny_store_path: Path, other_store: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, size=64)
    plain = probs_NK(predict_runs([run], device=CPU, store_path=other_store))
    calibration = calibrate(run)
    report = export_run(run, tmp_path / "model.pt2")
    texts = {CALIBRATION_FILE: ""}
    model = torch.export.load(report.model, extra_files=texts).module()
    with Store(other_store) as store:
        positions = whole_slices(store)
        found = model(stack_hu(store, positions)).detach().numpy()
    predicted = probs_NK(predict_runs([run], device=CPU, store_path=other_store))
    expected = calibration.apply(plain)[positions]
    np.testing.assert_allclose(predicted[positions], expected, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - plain[positions])[:, [0, 1, 2, 4, 5]].max(0).min() > 0.01
    content = json.loads(texts[CALIBRATION_FILE])
    assert content["aim"] == {"figure": "sensitivity", "value": 0.95}
    first, unlabelled = calibration.classes[0], content["classes"]["intraventricular"]
    assert first.threshold is not None
    assert content["classes"]["any"] == {
        "temperature": first.temperature,
        "bias": first.bias,
        "threshold": first.threshold.probability,
    }
    assert unlabelled == {"temperature": 1.0, "bias": 0.0, "threshold": None}
    card = Path(report.card).read_text("utf-8")
    assert f"| any | {first.temperature:.3f} | {first.bias:.3f} | " in card
    assert "intraventricular is not calibrated: no slice has a label of it." in card
    assert "on 320 slices of\n10 patients" in card
    assert "validation fold, without calibration" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("neighbours", "windows"), [(1, "brain"), (1, "brain,subdural,bone"), (2, "brain")]
)
def test_a_model_with_neighbours_takes_slabs(
    neighbours: int,
    windows: str,
    tiny_store_path: Path,
    other_store: Path,
    tmp_path: Path,
) -> None:
    run = write_run(
        tmp_path / "run",
        tiny_store_path,
        f"data.windows={windows}",
        f"data.neighbours={neighbours}",
    )
    predicted = probs_NK(predict_runs([run], device=CPU, store_path=other_store))
    report = export_run(run, tmp_path / "model.pt2")
    depth = 2 * neighbours + 1
    assert report.input_shape == ("slices", depth, 512, 512)
    assert f"\nThe {depth} slices are a slab: {neighbours} below, the slice" in Path(
        report.card
    ).read_text("utf-8")
    with Store(other_store) as store:
        hu_BDHW = torch.stack([stack_hu(store, np.arange(depth))])
    found = torch.export.load(report.model).module()(hu_BDHW)
    np.testing.assert_allclose(found[0].detach(), predicted[neighbours], atol=1e-4)


WINDOWS = {1: ("brain",), 3: ("brain", "subdural", "bone")}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread_and_seed")
@pytest.mark.parametrize(
    ("name", "slab_depth", "num_windows"),
    [
        (name, *channels)
        for name, channels in zip(
            test_timm.NAMES,
            itertools.cycle([(3, 3), (1, 3), (1, 1), (3, 1)]),
            strict=False,
        )
    ],
)
def test_classifiers_of_timm_are_exported(
    name: str, slab_depth: int, num_windows: int
) -> None:
    model = build_model(f"timm:{name}", in_chans=slab_depth * num_windows, size=64)
    module = HuToProbs(
        model.to(memory_format=torch.contiguous_format),
        size=64,
        level=256,
        windows=[parse_window(each) for each in WINDOWS[num_windows]],
        normalization=no_normalization(num_windows),
        slab_depth=slab_depth,
    ).eval()
    shape = (slab_depth, 512, 512) if slab_depth > 1 else (512, 512)
    hu = 300 * torch.randn(3, *shape)
    program = export.trace_module(module, hu).module()
    with torch.inference_mode():
        torch.testing.assert_close(program(hu), module(hu), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_attention_is_exported_too(tiny_store_path: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, "model.arch=xresnet50-attn")
    report = export_run(run, tmp_path / "model.pt2")
    hu_BHW = torch.randint(-1000, 2000, (1, 512, 512)).float()
    expected = hu_module(open_run(run))(hu_BHW)
    found = torch.export.load(report.model).module()(hu_BHW)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_card_describes_the_model(tiny_store_path: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_store_path)
    report = export_run(run, tmp_path / "model.pt2")
    card = Path(report.card).read_text("utf-8")
    assert report.card == str(tmp_path / "model.pt2.card.md")
    for words in (
        "Not a medical device", "Not calibrated: a", r"validation fold \| \|",
        "whole patients", "0.4000",
        "epoch 2", TINY_ARCH, "brain, subdural, bone", "ichfast", "commit",
        r"a known label: any \d+, epidural",
    ):  # fmt: skip
        assert re.search(words, card), words
    assert str(tmp_path) not in card
    leaking = write_run(tmp_path / "leaking", tiny_store_path, "folds.kind=slice")
    card = Path(export_run(leaking, tmp_path / "leaking.pt2").card).read_text("utf-8")
    assert "better than they are" in card.replace("\n  ", " ")
    assert "The pixels must be square" in card


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("folds.group=study", "whole studies: a patient of several studies may be on"),
        ("data.square_pixels=false", "Every pixel counts as a square"),
    ],
)
def test_the_card_describes_folds_by_study_and_pixels_that_are_not_square(
    setting: str, words: str, tiny_store_path: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, setting)
    assert words in format_card(open_run(run), tmp_path / "model.pt2")


def test_onnx_names_what_to_install(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    run = write_run(tmp_path / "run", tiny_store_path)
    with pytest.raises(ModelError, match=r"onnx.*pip install 'ichfast\[export\]'"):
        export_run(run, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
def test_onnx_runtime_equals_predict(
    tiny_store_path: Path,
    other_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in (*ONNX_PACKAGES, "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra `export`")
    import onnxruntime

    run = write_run(tmp_path / "run", tiny_store_path, size=64)
    plain = probs_NK(predict_runs([run], device=CPU, store_path=other_store))
    predicted = calibrate(run).apply(plain)
    report = export_run(run, tmp_path / "model.onnx")
    assert capsys.readouterr().out == ""
    with Store(other_store) as store:
        positions = whole_slices(store)
        hu_BHW = stack_hu(store, positions)
    session = onnxruntime.InferenceSession(report.model)
    (found,) = session.run(["probs"], {"hu": hu_BHW.numpy()})
    np.testing.assert_allclose(found, predicted[positions], atol=1e-4)
    entries = session.get_modelmeta().custom_metadata_map
    assert set(json.loads(entries[CALIBRATION_ENTRY])["classes"]) == set(CLASSES)


def test_two_exports_of_a_run_have_a_card_each() -> None:
    assert card_path(Path("a/m.onnx")) == Path("a/m.onnx.card.md")
    assert card_path(Path("a/m.pt2")) == Path("a/m.pt2.card.md")


def test_a_card_that_cannot_be_written_leaves_the_older_model(
    tiny_store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "trace", lambda _: None)
    monkeypatch.setattr(export, "_pt2", lambda *_: b"newer")
    run = write_run(tmp_path / "run", tiny_store_path)
    model = tmp_path / "model.pt2"
    model.write_bytes(b"older")
    card_path(model).mkdir()
    with pytest.raises(ModelError, match=r"cannot write .*model\.pt2\.card\.md: Is a"):
        export_run(run, model)
    assert model.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run", "model.pt2", "model.pt2.card.md"),
    }


def test_what_cannot_be_exported_is_refused(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", tiny_store_path, "data.windows=own")
    with pytest.raises(ModelError, match="own window"):
        export_run(run, tmp_path / "model.pt2")
    with pytest.raises(ModelError, match=r"\.pt2 or \.onnx file, got 'model.bin'"):
        export_run(run, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match="no run in"):
        export_run(tmp_path, tmp_path / "model.pt2")
