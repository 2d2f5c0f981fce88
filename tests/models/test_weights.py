"""Weights come from a file whole, fitted where it is said, or not at all."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from ichfast.errors import ModelError
from ichfast.models.build import ARCHS, build_model
from ichfast.models.weights import read_tensors

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("form", ["safetensors", "state dict", "checkpoint"])
def test_a_model_starts_from_a_file_of_each_form(
    form: str, tmp_path: Path, built: dict[str, nn.Module]
) -> None:
    state = built["xresnet50-attn"].state_dict()
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)
    elif form == "state dict":
        path = save(tmp_path / "weights.pth", state)
    else:
        path = save(tmp_path / "last.pt", {"model": state, "epoch": 3})
    loaded = build_model("xresnet50-attn", weights=path).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("arch", [a for a in ARCHS if ARCHS[a].timm_name])
def test_a_model_starts_from_what_timm_publishes_for_it(
    arch: str, tmp_path: Path
) -> None:
    # timm's own model, as its files are: three channels, a thousand classes.
    theirs = timm.create_model(ARCHS[arch].timm_name, pretrained=False).state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({n: t.contiguous() for n, t in theirs.items()}, path)
    loaded = build_model(arch, in_chans=3, weights=path).state_dict()
    assert loaded.keys() == theirs.keys()
    other = [name for name in loaded if not torch.equal(loaded[name], theirs[name])]
    assert other in (["classifier.weight", "classifier.bias"], ["fc.weight", "fc.bias"])


def test_weights_for_three_channels_are_summed_for_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = build_model("efficientnet-b0", in_chans=3).eval()
    path = save(tmp_path / "weights.pth", three.state_dict())
    with caplog.at_level(logging.INFO):
        one = build_model("efficientnet-b0", in_chans=1, weights=path).eval()
    gray_BCHW = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        expected_BCHW = three.get_submodule("conv_stem")(
            gray_BCHW.expand(-1, 3, -1, -1)
        )
        found_BCHW = one.get_submodule("conv_stem")(gray_BCHW)
    torch.testing.assert_close(found_BCHW, expected_BCHW)
    assert "summed from 3 channels to 1" in caplog.text


@pytest.mark.parametrize("head", ["linear", "concat-pool"])
def test_a_head_of_another_shape_gives_way_with_a_log_line(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    imagenet = build_model("resnext50", num_classes=11).state_dict()
    path = save(tmp_path / "weights.pth", imagenet)
    with caplog.at_level(logging.INFO):
        model = build_model("resnext50", weights=path, head=head)
    assert model.eval()(torch.randn(2, 1, 64, 64)).shape == (2, 6)
    loaded = model.state_dict()
    body = [name for name in imagenet if not name.startswith("fc.")]
    assert all(torch.equal(loaded[name], imagenet[name]) for name in body)
    assert "the new head starts random" in caplog.text


def test_weights_of_another_arch_are_refused_with_the_first_differences(
    tmp_path: Path, built: dict[str, nn.Module]
) -> None:
    path = save(tmp_path / "weights.pth", built["efficientnet-b0"].state_dict())
    with pytest.raises(ModelError, match=r"does not fit resnext50: .*; and \d+ more"):
        build_model("resnext50", weights=path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("conv_head.weight", None, "conv_head.weight is missing"),
        ("conv_tail.weight", torch.ones(1), "conv_tail.weight is not known here"),
        ("bn1.weight", torch.ones(7), r"bn1.weight is \(7,\), expected \(32,\)"),
    ],
)
def test_weights_that_fit_in_part_are_refused(
    name: str,
    change: Tensor | None,
    message: str,
    tmp_path: Path,
    built: dict[str, nn.Module],
) -> None:
    state = dict(built["efficientnet-b0"].state_dict())
    state.pop(name, None)
    if change is not None:
        state[name] = change
    path = save(tmp_path / "weights.pth", state)
    with pytest.raises(ModelError, match=message):
        build_model("efficientnet-b0", weights=path)


class Hostile:
    """Pickled, it asks whoever opens it to create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_hostile_file_is_refused_and_runs_nothing(form: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    content = {"model": {"fc.weight": Hostile(marker)}}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ModelError, match="could run code"):
        build_model("efficientnet-b0", weights=path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_torn_file_is_one_line_that_names_it(
    name: str, share: float, tmp_path: Path
) -> None:
    path = tmp_path / name
    tensors = {"a": torch.arange(1000.0), "b": torch.ones(3)}
    torch.save(tensors, path)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=str(path)) as caught:
        build_model("efficientnet-b0", weights=path)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.pth", [torch.ones(3)])
    with pytest.raises(ModelError, match="holds no state dict"):
        build_model("efficientnet-b0", weights=path)


def test_weights_that_do_not_exist_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights at .*missing\.pth"):
        build_model("efficientnet-b0", weights=tmp_path / "missing.pth")


def test_tensors_without_a_name_are_no_weights(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        read_tensors(tmp_path / "a.pt")
