"""ImageNet weights come from the network once, or are refused in one line."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch

from ichfast import pretrained
from ichfast.errors import ModelError
from ichfast.models.build import build_model


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
    monkeypatch.setattr(pretrained, "CONNECT_TIMEOUT_S", 0.2)
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
    monkeypatch.setattr(
        pretrained, "_answers", lambda *_: pytest.fail("asked the network")
    )
    model = build_model("efficientnet-b0", in_chans=3, pretrained=True)
    loaded = model.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], state["conv_stem.weight"])
    assert loaded["classifier.weight"].shape == (6, 1280)


def test_an_arch_without_published_weights_says_so() -> None:
    with pytest.raises(ModelError, match="nobody has published"):
        build_model("xresnet50-attn", pretrained=True)
