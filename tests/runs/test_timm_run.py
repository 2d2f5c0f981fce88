"""A classifier of timm trains, freezes, resumes, predicts, explains and exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ichfast.errors import InterruptionError, ModelError, RecipeError
from ichfast.evaluation.predictions import probs_NK
from ichfast.export.export import export_run
from ichfast.models.build import body_and_head
from ichfast.predict.ensemble import predict_runs
from ichfast.recipes.resolve import resolve_recipe
from ichfast.report.run_report import report_run
from ichfast.runs.folder import default_run_dir
from ichfast.runs.run import build_run_model, train_run
from ichfast.runs.trained import open_run
from ichfast.training.history import read_history
from tests.runs.trainedruns import tiny_recipe

CPU = torch.device("cpu")
ARCH = "timm:test_vit.r160_in1k"


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread_and_seed", "unrendered")
def test_a_run_of_a_classifier_of_timm_is_like_any_other(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    """It sees nine channels: slabs of three slices through three windows."""
    recipe = tiny_recipe(
        "train.epochs=2",
        "train.phases.0.freeze_body=true",
        "train.ema_decay=0",
        "data.neighbours=1",
        "augment.depth_flip_probability=0.5",
        arch=ARCH,
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_run(tiny_store_path, recipe, whole, device=CPU)
    steps = iter(range(1, 100))
    with pytest.raises(InterruptionError):
        train_run(
            tiny_store_path,
            recipe,
            stopped,
            device=CPU,
            should_stop=lambda: next(steps) == 1,
        )
    train_run(tiny_store_path, recipe, stopped, device=CPU, resume=True)
    runs = open_run(whole), open_run(stopped)
    assert runs[0].record.recipe.model.arch == ARCH
    assert all(
        torch.equal(tensor, runs[1].weights[name])
        for name, tensor in runs[0].weights.items()
    )
    losses = [read_history(path)["train_loss"].tolist() for path in (whole, stopped)]
    assert losses[0] == losses[1]

    model = runs[0].load_model(CPU)
    starts = zip(
        *map(body_and_head, (model, build_run_model(recipe, CPU))), strict=True
    )
    (body, first_body), (head, first_head) = starts
    assert all(torch.equal(*pair) for pair in zip(body, first_body, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(head, first_head, strict=True))

    table = predict_runs([whole], device=CPU)
    assert probs_NK(table).shape == (len(table), 6)
    report_run(whole, table, tmp_path / "report.html", device=CPU)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("No map for this kind of backbone") == 1
    assert 'class="heat"' not in page
    exported = export_run(whole, tmp_path / "model.pt2")
    program = torch.export.load(exported.model).module()
    assert program(torch.full((2, 3, 512, 512), -1000.0)).shape == (2, 6)


def test_a_fixed_size_and_growing_images_are_refused_together() -> None:
    arch = "timm:vit_tiny_patch16_224"
    recipe = tiny_recipe("data.grow_from=32", arch=arch, size=64)
    with pytest.raises(ModelError, match="takes no images of 32x32 pixels"):
        build_run_model(recipe, CPU)


def test_images_grow_by_default_for_the_backbones_of_the_reference_only() -> None:
    grown = [resolve_recipe("fast", arch=a).data.grow_from for a in ("res2net50", ARCH)]
    assert grown == [160, None]


def test_the_name_of_a_runs_folder_has_no_colon() -> None:
    recipe = resolve_recipe("fast", arch=ARCH, size=64)
    assert str(default_run_dir(recipe)) == "runs/fast-timm-test_vit.r160_in1k-64"


def test_an_unknown_backbone_names_the_way_to_timm() -> None:
    with pytest.raises(RecipeError, match=r"unknown architecture .* timm:NAME"):
        resolve_recipe("fast", arch="vgg16")
