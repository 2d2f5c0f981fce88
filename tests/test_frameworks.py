"""The loader and runs in other frameworks: every block of docs/frameworks.md runs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ichfast
from ichfast.errors import InterruptionError
from ichfast.loading.batch import Batch
from ichfast.recipes.resolve import resolve_recipe
from tests.conftest import TINY_ARCH, draw_slice
from tests.store.slice_store import write_slices

PAGE = Path(__file__).parents[1] / "docs" / "frameworks.md"
CPU = torch.device("cpu")
NUM_PATIENTS, NUM_SLICES = 6, 5


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a test where a framework is not installed."""
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
    )


def block(heading: str) -> str:
    """The Python block below a heading of the page."""
    (section,) = re.findall(
        rf"^## {heading}\n(.*?)(?=^## |\Z)",
        PAGE.read_text("utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    (found,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small store of six patients."""
    path = tmp_path_factory.mktemp("frameworks")
    rng = np.random.default_rng(0)
    places = [(p, k) for p in range(NUM_PATIENTS) for k in range(NUM_SLICES)]
    labels_NK = rng.integers(0, 2, (len(places), 6))
    labels_NK[:, 0] = labels_NK[:, 1:].max(axis=1)
    rows: list[dict[str, Any]] = [
        {"patient": f"P{p}", "study": f"S{p}", "series": f"R{p}", "instance_number": k}
        | {"position_mm": 5.0 * k, "slice_id": f"ID_{p}_{k}"}
        | {"rows": 64, "columns": 64, "labelled": True}
        for p, k in places
    ]
    slices = [draw_slice(rng, 64, 64) for _ in places]
    write_slices(path / "ichfast-store", slices, rows, labels_NK, levels=(512,))
    return path


@pytest.fixture
def _at_home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder with the store, and build tiny backbones only."""
    (tmp_path / "ichfast-store").symlink_to(folder / "ichfast-store")
    monkeypatch.chdir(tmp_path)
    build = ichfast.build_model
    monkeypatch.setattr(ichfast, "build_model", lambda _: build(TINY_ARCH))


@pytest.fixture
def batch(folder: Path) -> Batch:
    config = ichfast.DataConfig(size=32, batch_size=8)
    with (
        ichfast.Store(folder / "ichfast-store") as store,
        ichfast.make_loader(store, range(8), config) as loader,
    ):
        return next(iter(loader))


def run_block(heading: str) -> dict[str, Any]:
    """Run the block below a heading; returns its names."""
    names: dict[str, Any] = {"__name__": "block"}
    exec(compile(block(heading), PAGE.name, "exec"), names)
    return names


def moved_weights(model: nn.Module) -> bool:
    """Whether a tiny model is another than a new one in its batch norm."""
    return any(
        int(buffer) > 0
        for name, buffer in model.named_buffers()
        if name.endswith("num_batches_tracked")
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_at_home")
def test_a_loop_of_pytorch_trains() -> None:
    names = run_block("A loop of PyTorch")
    assert len(names["loader"]) == 3  # of 24 slices or 25
    assert names["loss"].isfinite()
    assert moved_weights(names["model"])


@pytest.mark.slow
@needs("lightning")
@pytest.mark.usefixtures("_at_home")
def test_lightning_trains_and_validates_without_a_warning_about_batches() -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        names = run_block("Lightning")
    trainer = names["trainer"]
    assert (trainer.global_step, trainer.current_epoch) == (3, 1)
    assert trainer.callback_metrics["valid_loss"].isfinite()
    assert not [each for each in warned if "batch_size" in str(each.message)]


@needs("lightning")
@pytest.mark.filterwarnings("ignore")
def test_lightning_moves_a_batch_and_its_parts(batch: Batch) -> None:
    from lightning.fabric.utilities import move_data_to_device
    from lightning_utilities.core.apply_func import apply_to_collection

    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {each.device.type for each in moved} == {"meta"}
    doubled = apply_to_collection(batch, torch.Tensor, lambda each: each * 2)
    assert isinstance(doubled, Batch)
    assert torch.equal(doubled.indices_B, batch.indices_B * 2)


@pytest.mark.slow
@needs("accelerate")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_at_home")
def test_accelerate_trains() -> None:
    names = run_block("Accelerate")
    loader, accelerator = names["loader"], names["accelerator"]
    assert accelerator.prepare(loader) is loader
    assert moved_weights(accelerator.unwrap_model(names["model"]))


@needs("accelerate")
@pytest.mark.filterwarnings("ignore")
def test_accelerate_moves_and_measures_a_batch(batch: Batch) -> None:
    from accelerate.utils import find_batch_size, send_to_device

    moved = send_to_device(batch, torch.device("meta"), non_blocking=True)
    assert isinstance(moved, Batch)
    assert {each.device.type for each in moved} == {"meta"}
    assert find_batch_size(batch) == 8


class PlainLearner:
    """Trains and validates on pairs, as the `Learner` of fastai does."""

    def __init__(self, loaders: list[Any], model: nn.Module, *, loss_func: Any) -> None:
        self.recorder = SimpleNamespace(values=[])
        self._loaders, self._model, self._loss = loaders, model, loss_func

    def fit(self, num_epochs: int, *, lr: float) -> None:
        optimizer = torch.optim.SGD(self._model.parameters(), lr)
        for _ in range(num_epochs):
            means = []
            for is_training, loader in zip((True, False), self._loaders, strict=True):
                losses = []
                for inputs, targets in loader:
                    loss = self._loss(self._model(inputs), targets)
                    if is_training:
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    losses.append(loss.item())
                assert len(losses) == len(loader)
                means.append(np.mean(losses))
            self.recorder.values.append(means)


@pytest.mark.slow
@pytest.mark.parametrize(
    "is_real",
    [pytest.param(True, marks=needs("fastai")), False],
    ids=["fastai", "plain"],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_at_home")
def test_fastai_trains_and_validates(
    monkeypatch: pytest.MonkeyPatch, *, is_real: bool
) -> None:
    if not is_real:
        modules: dict[str, Any] = {
            "fastai.data.core": SimpleNamespace(DataLoaders=lambda *loaders: loaders),
            "fastai.learner": SimpleNamespace(Learner=PlainLearner),
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
    learner = run_block("fastai")["learner"]
    (losses,) = learner.recorder.values
    assert len(losses) == 2  # of training and validation
    assert np.isfinite(losses).all()


def test_a_loader_has_no_names_that_frameworks_take_for_those_of_torch(
    folder: Path,
) -> None:
    config = ichfast.DataConfig(size=32, batch_size=8)
    with (
        ichfast.Store(folder / "ichfast-store") as store,
        ichfast.make_loader(store, range(8), config) as loader,
    ):
        names = ("sampler", "batch_sampler", "dataset", "collate_fn", "num_workers")
        assert [name for name in names if hasattr(loader, name)] == []


@pytest.mark.slow
@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_at_home")
def test_mlflow_gets_the_settings_the_epochs_and_the_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    from mlflow.tracking import MlflowClient

    example = block("Callbacks of a run")
    assert len([line for line in example.splitlines() if line]) <= 20
    names: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), names)
    steps = iter(range(100))

    def stop_in_the_second_epoch() -> bool:
        return next(steps) == 3

    def interrupt() -> bool:
        raise KeyboardInterrupt

    recipe = resolve_recipe(
        "fast",
        arch=TINY_ARCH,
        size=32,
        device_type="cpu",
        assignments=["train.epochs=2", "data.batch_size=8"],
    )

    def train(*, resume: bool, should_stop: Callable[[], bool] = lambda: False) -> None:
        ichfast.train_run(
            Path("ichfast-store"),
            recipe,
            Path("run"),
            device=CPU,
            resume=resume,
            should_stop=should_stop,
            callbacks=[names["MLflow"]()],
        )

    with pytest.raises(InterruptionError):
        train(resume=False, should_stop=stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(resume=True, should_stop=interrupt)
    train(resume=True)
    client = MlflowClient()
    runs = client.search_runs(["0"], order_by=["start_time"])
    assert [run.info.status for run in runs] == ["KILLED", "KILLED", "FINISHED"]
    for run, num_epochs in zip(runs, (1, 1, 2), strict=True):
        assert run.info.run_name == "run"
        assert run.data.params["train.epochs"] == "2"
        losses = client.get_metric_history(run.info.run_id, "valid_loss")
        assert [each.step for each in losses] == list(range(num_epochs))


NOTEBOOK = PAGE.with_name("notebook.ipynb")


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert codes
    assert all(cell["outputs"] == [] for cell in codes)


@pytest.mark.slow
@needs("nbclient")
@needs("ipykernel")
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_in_jupyter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        monkeypatch.setenv(f"JUPYTER_{name}", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert not list(tmp_path.glob("tmp*"))
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    texts = [each.data["text/plain"] for each in outputs if "data" in each]
    (batch_line,) = [text for text in texts if text.startswith("Batch(")]
    assert "\n" not in batch_line
    assert float(texts[-1]) > 0
    assert any("image/png" in each.get("data", {}) for each in outputs)
    printed = "".join(each.text for each in outputs if each.get("name") == "stdout")
    assert re.findall(r"^epoch (\d): loss", printed, flags=re.MULTILINE) == ["0", "1"]
