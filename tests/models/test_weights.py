"""Weights from our files, timm's and fastai's load completely or are refused."""

from __future__ import annotations

import logging
import pickle
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from ichfast.errors import ModelError
from ichfast.models import weights
from ichfast.models.build import build_model
from ichfast.models.config import ARCHS
from ichfast.models.weights import (
    from_fastai_mxresnet,
    is_fastai_mxresnet,
    load_weights,
    read_tensors,
)
from tests.training.tiny_trainer import TinyNet
from tests.wrong_values import WRONG, with_wrong_values

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("arch", [a for a in ARCHS if ARCHS[a].timm_name])
def test_a_model_starts_from_what_timm_publishes_for_it(
    arch: str, tmp_path: Path
) -> None:
    # As timm's files are: three channels, a thousand classes.
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


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "concat-pool"])
def test_a_head_of_another_shape_is_left_out_with_a_log_line(
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


@pytest.mark.slow
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
        ("conv_tail.weight", torch.ones(1), "conv_tail.weight is unknown"),
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
    """Unpickling it would create a file."""

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
def test_the_error_for_a_truncated_file_is_one_line_that_names_it(
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


def test_tensors_without_a_name_are_refused(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        read_tensors(tmp_path / "a.pt")


ODD_TENSORS: dict[str, Tensor] = {
    "sparse": torch.eye(4).to_sparse(),
    "complex": torch.ones(4, dtype=torch.complex64),
    "truth": torch.ones(4, 1, 3, 3, dtype=torch.bool),
    "empty": torch.ones(0),
    "three channels": torch.ones(4, 3),
}


def crafted_weights(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Content of files that are no weights for `TinyNet`."""
    yield from with_wrong_values(state)
    yield from with_wrong_values({"model": state})
    for name in state:
        for kind, tensor in ODD_TENSORS.items():
            yield f"{name}={kind}", {**state, name: tensor}
    yield from ((f"top={name}", value) for name, value in WRONG.items())


def test_crafted_weights_are_refused_in_one_line_or_fit(tmp_path: Path) -> None:
    state = dict(TinyNet().state_dict())
    accepted = []
    crafted = list(crafted_weights(state))
    for name, content in crafted:
        path = save(tmp_path / "weights.pth", content)
        model = TinyNet()
        try:
            load_weights(model, path, arch="tiny", head="fc")
        except ModelError as error:
            assert str(path) in str(error), name  # noqa: PT017
            continue
        assert model(torch.zeros(2, 1, 9, 9)).shape == (2, 6), name
        accepted.append(name)
    assert len(crafted) > 200
    # A head of another shape is left out; old versions of torch counted no batches.
    allowed = ("fc.", "num_batches_tracked=missing")
    assert [name for name in accepted if not any(map(name.count, allowed))] == []


class FastaiAttention(nn.Module):
    """`SimpleSelfAttention`, with the spectral norm that torch had in 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv1d(channels, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.tensor([0.0]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCN = x_BCHW.flatten(2)
        product_BCC = x_BCN @ x_BCN.mT
        return (self.gamma * (product_BCC @ self.conv(x_BCN)) + x_BCN).view_as(x_BCHW)


def fastai_conv(
    channels_in: int, channels: int, size: int, stride: int
) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class FastaiBlock(nn.Module):
    """A bottleneck; a part that a block lacks is no module, and has no name."""

    def __init__(self, channels_in: int, width: int, stride: int, *, sa: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Sequential(*fastai_conv(channels_in, width, 1, 1), nn.Mish()),
            nn.Sequential(*fastai_conv(width, width, 3, stride), nn.Mish()),
            nn.Sequential(*fastai_conv(width, 4 * width, 1, 1)),
        )
        if sa:
            self.sa = FastaiAttention(4 * width)
        if channels_in != 4 * width:
            self.idconv = nn.Sequential(*fastai_conv(channels_in, 4 * width, 1, 1))
        if stride > 1:
            self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        branch_BCHW = self.convs(x_BCHW)
        if hasattr(self, "sa"):
            branch_BCHW = self.sa(branch_BCHW)
        for part in ("pool", "idconv"):
            x_BCHW = getattr(self, part)(x_BCHW) if hasattr(self, part) else x_BCHW
        return nn.functional.mish(branch_BCHW + x_BCHW)


def fastai_mxresnet50() -> nn.Sequential:
    """The layout of lessw2020's mxresnet50(c_out=6, sa=True)."""
    stem = [
        nn.Sequential(*fastai_conv(channels_in, channels, 3, stride), nn.Mish())
        for channels_in, channels, stride in ((3, 32, 2), (32, 64, 1), (64, 64, 1))
    ]
    stages, channels = [], 64
    for stage, (num_blocks, width) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)
    ):
        blocks = []
        for block in range(num_blocks):
            stride = 2 if stage and block == 0 else 1
            has_sa = stage == 0 and block == num_blocks - 1
            blocks.append(FastaiBlock(channels, width, stride, sa=has_sa))
            channels = 4 * width
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(
        *stem,
        nn.MaxPool2d(3, 2, 1),
        *stages,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, 6),
    )


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    """An mxresnet50 of fastai with all tensors different, in evaluation mode."""
    torch.manual_seed(0)
    model = fastai_mxresnet50()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    tensor.uniform_(0.5, 1.0)
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.normal_(0, 0.1)
            if isinstance(module, FastaiAttention):
                module.gamma.fill_(0.1)  # large enough to change the logits
    return model.eval()


def save_as_fastai(path: Path, state: dict[str, Tensor]) -> Path:
    """Save as fastai's `Learner.save` does: weights, and the optimizer's state."""
    torch.save({"model": state, "opt": {"state": {}, "param_groups": []}}, path)
    return path


@pytest.mark.slow
def test_weights_of_fastai_give_the_logits_of_fastai(
    trained: nn.Sequential, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_as_fastai(tmp_path / "exp_10.pth", trained.state_dict())
    with caplog.at_level(logging.INFO):
        ours = build_model("xresnet50-attn", in_chans=3, weights=path).eval()
    images_BCHW = torch.randn(2, 3, 65, 64)
    with torch.inference_mode():
        expected_BK, found_BK = trained(images_BCHW), ours(images_BCHW)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-3, atol=1e-4)
    assert expected_BK.std() > 1e-2
    assert "holds fastai's mxresnet50; its tensors are renamed" in caplog.text


def test_every_tensor_of_fastai_has_its_name_here(trained: nn.Sequential) -> None:
    state = trained.state_dict()
    renamed = from_fastai_mxresnet(state)
    wanted = build_model("xresnet50-attn", in_chans=3).state_dict()
    assert {n: t.shape for n, t in renamed.items()} == {
        n: t.shape for n, t in wanted.items()
    }
    assert all(t is u for t, u in zip(state.values(), renamed.values(), strict=True))


@pytest.mark.slow
def test_three_channels_of_fastai_are_summed_for_one(
    trained: nn.Sequential, tmp_path: Path
) -> None:
    path = save_as_fastai(tmp_path / "exp_10.pth", trained.state_dict())
    ours = build_model("xresnet50-attn", in_chans=1, weights=path).eval()
    gray_BCHW = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected_BK = trained(gray_BCHW.expand(-1, 3, -1, -1))
        found_BK = ours(gray_BCHW)
    torch.testing.assert_close(found_BK, expected_BK, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4.2.sa.gamma", "stages.0.2.attention.gamma is missing"),
        ("7.2.convs.1.1.bias", "stages.3.2.convs.2.1.bias is missing"),
    ],
)
def test_weights_of_fastai_that_lack_a_tensor_are_refused(
    name: str, message: str, trained: nn.Sequential, tmp_path: Path
) -> None:
    state = {n: tensor for n, tensor in trained.state_dict().items() if n != name}
    with pytest.raises(ModelError, match=message):
        build_model(
            "xresnet50-attn",
            in_chans=3,
            weights=save_as_fastai(tmp_path / "w.pth", state),
        )


def test_our_own_state_dict_is_not_taken_for_that_of_fastai() -> None:
    assert not is_fastai_mxresnet(build_model("xresnet50-attn").state_dict())


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the weights server, and no proxy on the way to it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def message_without_weights(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error of a server that does not have the weights."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server)
    with pytest.raises(ModelError) as caught:
        build_model("resnext50", pretrained=True)
    return str(caught.value)


@pytest.fixture
def no_hub_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client, which retries for long, must not be called."""
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("called the hub")
    )


@pytest.mark.usefixtures("empty_cache", "no_hub_client")
def test_the_error_without_a_network_is_one_line_that_names_weights(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refused
        server = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = message_without_weights(server, monkeypatch)
    assert "does not answer" in message
    assert "--weights" in message
    assert "timm/resnext50_32x4d.tv_in1k" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


@pytest.mark.usefixtures("empty_cache", "no_hub_client")
def test_the_wait_for_a_silent_server_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        message = message_without_weights(server, monkeypatch)
    assert "does not answer" in message


class Empty(BaseHTTPRequestHandler):
    """A server without any page."""

    def do_HEAD(self) -> None:
        """Respond that there is no such page."""
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@pytest.mark.usefixtures("empty_cache")
def test_the_error_of_a_server_without_the_weights_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("404 Not Found\nand a page about it")

    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        address = f"http://127.0.0.1:{server.server_port}"
        message = message_without_weights(address, monkeypatch)
        thread.join(timeout=60)
    assert "no pretrained weights for resnext50: 404 Not Found; download" in message
    assert "--weights" in message


@pytest.mark.slow
def test_cached_weights_need_no_network(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = build_model("efficientnet-b0", in_chans=3, num_classes=1000).state_dict()
    repository = empty_cache / "models--timm--tf_efficientnet_b0.aa_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        repository / "snapshots" / "abc" / "model.safetensors",
    )
    monkeypatch.setattr(
        weights, "_is_reachable", lambda *_: pytest.fail("asked the network")
    )
    model = build_model("efficientnet-b0", in_chans=3, pretrained=True)
    loaded = model.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"])
    assert loaded["classifier.weight"].shape == (6, 1280)


def test_an_arch_without_published_weights_says_so() -> None:
    with pytest.raises(ModelError, match="no published ImageNet weights"):
        build_model("xresnet50-attn", pretrained=True)
