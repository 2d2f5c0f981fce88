"""The four backbones are what their names say, and start from what they are given."""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ichfast import models
from ichfast.errors import ModelError
from ichfast.models import ARCHS, ConcatPool, body_and_head, build_model
from ichfast.xresnet import ResBlock, SimpleSelfAttention, XResNet50Attn

OLD_HEAD_2048 = 2048 * 1000 + 1000
NEW_HEAD_2048 = 2048 * 6 + 6
RESNET50 = 25_557_032
RESNET50_STEM = 7 * 7 * 3 * 64 + 2 * 64
XRESNET_STEM = 9 * (3 * 32 + 32 * 64 + 64 * 64) + 2 * (32 + 64 + 64)
NUM_PARAMETERS = {
    "efficientnet-b0": 5_288_548 - 1_281_000 + 1280 * 6 + 6,
    "xresnet50-attn": (
        RESNET50 - RESNET50_STEM - OLD_HEAD_2048  # body
        + XRESNET_STEM + 256 * 256 + 1 + NEW_HEAD_2048
    ),
    "res2net50": 25_699_120 - OLD_HEAD_2048 + NEW_HEAD_2048,
    "resnext50": 25_028_904 - OLD_HEAD_2048 + NEW_HEAD_2048,
}  # fmt: skip
"""With three channels and six classes, from the published 1,000-class figures."""

every_arch = pytest.mark.parametrize("arch", ARCHS)


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    """One untouched model of each arch, in evaluation mode; not to be changed."""
    torch.manual_seed(0)
    return {arch: build_model(arch).eval() for arch in ARCHS}


def as_channels_last(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.contiguous(memory_format=torch.channels_last)


# ----------------------------------------------------------------- what is built


@every_arch
def test_a_model_has_the_published_number_of_parameters(
    arch: str, built: dict[str, nn.Module]
) -> None:
    three = build_model(arch, in_chans=3)
    assert sum(p.numel() for p in three.parameters()) == NUM_PARAMETERS[arch]
    one = built[arch].state_dict()
    other = [
        name for name, t in three.state_dict().items() if t.shape != one[name].shape
    ]
    assert len(other) == 1
    assert other[0].startswith(("conv_stem.", "conv1.", "stem.0."))


@every_arch
@pytest.mark.parametrize("size", [64, 65, 512])
def test_a_model_takes_any_size(
    arch: str, size: int, built: dict[str, nn.Module]
) -> None:
    with torch.inference_mode():
        logits_BK = built[arch](as_channels_last(torch.randn(1, 1, size, size)))
    assert logits_BK.shape == (1, 6)
    assert logits_BK.isfinite().all()


@every_arch
def test_channels_last_images_give_the_same_logits(
    arch: str, built: dict[str, nn.Module]
) -> None:
    images_BCHW = torch.randn(2, 1, 64, 72)
    with torch.inference_mode():
        plain_BK = built[arch](images_BCHW)
        last_BK = built[arch](as_channels_last(images_BCHW))
    torch.testing.assert_close(last_BK, plain_BK, rtol=1e-4, atol=1e-5)


@every_arch
@pytest.mark.parametrize("in_chans", [1, 3])
def test_channels_last_images_stay_channels_last(arch: str, in_chans: int) -> None:
    model = build_model(arch, in_chans=in_chans)
    strayed: list[str] = []

    def check(name: str, output: Any) -> None:
        if (
            isinstance(output, Tensor)
            and output.ndim == 4
            and not output.is_contiguous(memory_format=torch.channels_last)
        ):
            strayed.append(name)

    for name, module in model.named_modules():
        module.register_forward_hook(lambda *args, n=name: check(n, args[2]))
    model(torch.randn(2, 64, 64, in_chans).permute(0, 3, 1, 2))
    assert strayed == []


@every_arch
def test_three_steps_move_every_parameter(arch: str) -> None:
    # Gammas of 0 block gradients at first: the last batch norm of a block moves in
    # the first step, what stands before it and attention's gamma in the second,
    # attention's W in the third.
    model = build_model(arch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images_BCHW = as_channels_last(torch.randn(4, 1, 64, 64))
    for _ in range(3):
        optimizer.zero_grad()
        model(images_BCHW).square().sum().backward()
        optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    assert all(p.isfinite().all() for p in model.parameters())


def test_efficientnet_drops_features_and_blocks() -> None:
    model = build_model("efficientnet-b0")
    paths = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert model.drop_rate == 0.2
    assert 0.15 < max(float(str(p)) for p in paths) < 0.2  # rises from block to block


def test_res2net_splits_26_channels_four_ways() -> None:
    block = build_model("res2net50").get_submodule("layer1.0")
    assert [block.width, block.scale] == [26, 4]


def test_the_concat_pool_head_is_that_of_fastai() -> None:
    model = build_model("resnext50", head="concat-pool")
    head = model.get_submodule("fc")
    kinds = [type(module).__name__ for module in head.children()]
    assert kinds == [
        "BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"
    ]  # fmt: skip
    assert [m.p for m in head.children() if isinstance(m, nn.Dropout)] == [0.25, 0.5]
    linears = [m for m in head.children() if isinstance(m, nn.Linear)]
    assert [linear.in_features for linear in linears] == [4096, 512]
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 6)


def test_concat_pool_puts_the_maximum_before_the_mean() -> None:
    features_BCHW = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 1, 2, 2)
    assert ConcatPool()(features_BCHW).tolist() == [[6.0, 3.0]]


# ------------------------------------------------------------------ xresnet50-attn


def test_xresnet_has_one_attention_at_the_end_of_its_first_stage() -> None:
    model = build_model("xresnet50-attn")
    found = [n for n, m in model.named_modules() if isinstance(m, SimpleSelfAttention)]
    assert found == ["stages.0.2.attention"]
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert len(blocks) == 3 + 4 + 6 + 3
    assert all(block.convs[-1][-1].weight.eq(0).all() for block in blocks)  # type: ignore[index]
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_xresnet_stages_have_the_sizes_and_channels_of_a_resnet() -> None:
    model = build_model("xresnet50-attn", in_chans=3)
    assert isinstance(model, XResNet50Attn)
    x_BCHW = model.stem(torch.randn(1, 3, 96, 64))
    shapes = [tuple(x_BCHW.shape[1:])]
    for stage in model.stages:
        x_BCHW = stage(x_BCHW)
        shapes.append(tuple(x_BCHW.shape[1:]))
    assert shapes == [
        (64, 24, 16), (256, 24, 16), (512, 12, 8), (1024, 6, 4), (2048, 3, 2)
    ]  # fmt: skip


def test_a_fresh_block_is_its_shortcut() -> None:
    block = ResBlock(8, 2, stride=1, attention=True).eval()
    x_BCHW = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(block(x_BCHW), nn.functional.mish(x_BCHW))


def test_a_shortcut_averages_before_it_convolves_and_rounds_up() -> None:
    block = ResBlock(8, 4, stride=2, attention=False)
    assert [type(m).__name__ for m in block.shortcut] == ["AvgPool2d", "Sequential"]
    assert block(torch.randn(2, 8, 5, 7)).shape == (2, 16, 3, 4)


def naive_attention(x_BCHW: Tensor, weight_CC: Tensor, gamma: Tensor) -> Tensor:
    """The reference's formula, slice by slice and position by position."""
    slices = []
    for x_CHW in x_BCHW:
        x_CN = x_CHW.flatten(1)
        columns = [weight_CC @ x_CN[:, n] for n in range(x_CN.shape[1])]
        product_CC = torch.stack(
            [torch.stack([(row * other).sum() for other in x_CN]) for row in x_CN]
        )
        o_CN = torch.stack([product_CC @ column for column in columns], dim=1)
        slices.append((gamma * o_CN + x_CN).view_as(x_CHW))
    return torch.stack(slices)


@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last]
)
def test_attention_equals_the_naive_loop_in_value_and_gradient(
    memory_format: torch.memory_format,
) -> None:
    attention = SimpleSelfAttention(5).eval()
    nn.init.constant_(attention.gamma, 0.7)
    x_BCHW = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format)
    x_BCHW.requires_grad_()
    wanted = [x_BCHW, *attention.parameters()]
    cotangent_BCHW = torch.randn(2, 5, 3, 4)

    fast_BCHW = attention(x_BCHW)
    weight_CC = attention.conv.weight[:, :, 0]  # type: ignore[index]
    slow_BCHW = naive_attention(x_BCHW, weight_CC, attention.gamma)
    torch.testing.assert_close(fast_BCHW, slow_BCHW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.autograd.grad(fast_BCHW, wanted, cotangent_BCHW),
        torch.autograd.grad(slow_BCHW, wanted, cotangent_BCHW),
        rtol=1e-4,
        atol=1e-4,
    )


def test_attention_starts_as_the_identity() -> None:
    x_BCHW = torch.randn(2, 5, 3, 4)
    assert torch.equal(SimpleSelfAttention(5)(x_BCHW), x_BCHW)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [56, 128])
def test_large_activations_do_not_overflow_half_precision(
    dtype: torch.dtype, size: int
) -> None:
    attention = SimpleSelfAttention(4).eval()
    nn.init.constant_(attention.gamma, 1e-8)
    x_BCHW = as_channels_last(300 + 100 * torch.randn(2, 4, size, size))
    x_BCN = x_BCHW.flatten(2)
    assert (x_BCN @ x_BCN.mT).abs().min() > torch.finfo(torch.float16).max

    expected_BCHW = attention(x_BCHW)
    with torch.autocast("cpu", dtype=dtype):
        half_BCHW = attention(x_BCHW.to(dtype))
    half_BCHW.float().sum().backward()
    assert half_BCHW.dtype == dtype
    assert expected_BCHW.abs().max() > 2 * x_BCHW.abs().max()  # attention has a say
    error = (half_BCHW - expected_BCHW).abs().max() / expected_BCHW.abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    assert all(p.grad is not None and p.grad.isfinite().all() for p in
               attention.parameters())  # fmt: skip


def test_spectral_norm_holds_the_largest_singular_value_at_one() -> None:
    attention = SimpleSelfAttention(16)
    with torch.no_grad():
        attention.conv.parametrizations.weight.original.mul_(9)  # type: ignore[union-attr, operator]
    for _ in range(30):  # the power iteration goes on in training mode
        attention(torch.randn(1, 16, 2, 2))
    weight_CC = attention.eval().conv.weight[:, :, 0]  # type: ignore[index]
    assert torch.linalg.matrix_norm(weight_CC, ord=2).item() == pytest.approx(
        1, abs=0.02
    )


def test_evaluation_leaves_the_spectral_norm_alone() -> None:
    attention = SimpleSelfAttention(16).eval()
    before = {name: t.clone() for name, t in attention.state_dict().items()}
    attention(torch.randn(1, 16, 2, 2))
    assert all(torch.equal(t, before[n]) for n, t in attention.state_dict().items())


def test_half_precision_does_not_blur_the_spectral_norm() -> None:
    attention = SimpleSelfAttention(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention(torch.randn(1, 64, 2, 2).bfloat16())
    u_C = attention.conv.parametrizations.weight[0]._u  # type: ignore[union-attr, index]
    assert u_C.norm().item() == pytest.approx(1, abs=1e-5)


# --------------------------------------------------------------- frozen-body phases


@every_arch
def test_body_and_head_divide_the_parameters_and_batch_norm_trains(arch: str) -> None:
    model = build_model(arch)
    body, trained = body_and_head(model)
    ids = [id(p) for p in body + trained]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    trained_ids = {id(p) for p in trained}
    head = model.get_submodule("classifier" if arch == "efficientnet-b0" else "fc")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = [*head.parameters(), *(p for norm in norms for p in norm.parameters())]
    assert trained_ids == {id(p) for p in expected}
    assert len(norms) > 40


def test_concat_pools_own_batch_norm_is_counted_once() -> None:
    body, trained = body_and_head(build_model("resnext50", head="concat-pool"))
    assert len({id(p) for p in body + trained}) == len(body + trained)


# ------------------------------------------------------------------------- weights


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


# ---------------------------------------------------------------------- what is asked


def test_an_unknown_arch_names_the_near_miss_and_all_known() -> None:
    with pytest.raises(ModelError, match="did you mean resnext50") as caught:
        build_model("resnet50x")
    assert all(arch in str(caught.value) for arch in ARCHS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_chans": 2}, "takes 1 or 3 channels, got 2"),
        ({"head": "concat-pool"}, "efficientnet-b0 has no head 'concat-pool'"),
        ({"pretrained": True, "weights": Path("w.pth")}, "both pretrained weights and"),
    ],
)
def test_settings_that_make_no_model_are_errors(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build_model("efficientnet-b0", **settings)


# -------------------------------------------------------------- pretrained weights


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the weights server, and no proxy on the way to it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def ask_pretrained_of(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, float]:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server)
    began = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        build_model("resnext50", pretrained=True)
    return str(caught.value), time.perf_counter() - began


@pytest.mark.usefixtures("empty_cache")
def test_no_network_is_one_line_that_names_weights(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        server = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message, gone_s = ask_pretrained_of(server, monkeypatch)
    assert "does not answer" in message
    assert "--weights" in message
    assert "timm/resnext50_32x4d.tv_in1k" in message
    assert "\n" not in message
    assert gone_s < 5
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


@pytest.mark.usefixtures("empty_cache")
def test_a_server_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        message, gone_s = ask_pretrained_of(server, monkeypatch)
    assert "does not answer" in message
    assert gone_s < 5


class Empty(BaseHTTPRequestHandler):
    """A server that has nothing."""

    def do_HEAD(self) -> None:
        """Answer that there is no such page."""
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.usefixtures("empty_cache")
def test_a_server_without_the_weights_is_one_line_that_names_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("404 Not Found\nand a page about it")

    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        address = f"http://127.0.0.1:{server.server_port}"
        message, _ = ask_pretrained_of(address, monkeypatch)
        thread.join(timeout=5)
    assert "no pretrained weights for resnext50: 404 Not Found; download" in message
    assert "--weights" in message


def test_weights_fetched_before_need_no_network(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = build_model("efficientnet-b0", in_chans=3, num_classes=1000).state_dict()
    repository = empty_cache / "models--timm--efficientnet_b0.ra_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        repository / "snapshots" / "abc" / "model.safetensors",
    )
    monkeypatch.setattr(models, "_answers", lambda *_: pytest.fail("asked the network"))
    model = build_model("efficientnet-b0", in_chans=3, pretrained=True)
    loaded = model.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"])
    assert loaded["classifier.weight"].shape == (6, 1280)


def test_an_arch_without_published_weights_says_so() -> None:
    with pytest.raises(ModelError, match="nobody has published"):
        build_model("xresnet50-attn", pretrained=True)
