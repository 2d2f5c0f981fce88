"""The ImageNet weights that timm publishes, downloaded once.

Without a network they are refused within seconds, in one line that says what to do.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import huggingface_hub

from ichfast.errors import ModelError, first_line

CONNECT_TIMEOUT_S = 8.0
"""How long the server of pretrained weights may take to answer, seconds."""

HUB_FILE = "model.safetensors"
"""The weights in a timm repository on the Hugging Face hub."""


def fetch_pretrained(arch: str, timm_name: str | None) -> Path:
    """The file of a backbone's ImageNet weights, downloaded if need be.

    Args:
        arch: the backbone's name, for messages.
        timm_name: timm's model and, after the dot, weights; None where there are
            none.

    Raises:
        ModelError: there are none, or they cannot be had.
    """
    if timm_name is None:
        raise ModelError(
            f"nobody has published ImageNet weights for {arch}; "
            "leave out --pretrained, or give --weights FILE"
        )
    repository = f"timm/{timm_name}"
    cached = huggingface_hub.try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    server = huggingface_hub.constants.ENDPOINT
    advice = (
        f"download {HUB_FILE} of {repository} elsewhere and give --weights FILE, "
        "or leave out --pretrained"
    )
    if not _answers(server, CONNECT_TIMEOUT_S):
        raise ModelError(
            f"no pretrained weights for {arch}: {server} does not answer; {advice}"
        )
    try:
        return Path(huggingface_hub.hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # its HTTP client's own, of any kind
        raise ModelError(
            f"no pretrained weights for {arch}: {first_line(error)}; {advice}"
        ) from error


def _answers(url: str, timeout_s: float) -> bool:
    # The hub's client tries for 23 s and more, with a warning for every attempt.
    # A thread, because a name look-up takes no timeout.
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()
        except urllib.error.HTTPError as error:
            error.close()  # an error page is an answer
        except (OSError, HTTPException):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answered.is_set()
