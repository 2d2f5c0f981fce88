"""A server that runs `train` in forked processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.forked import Server, command_server


@pytest.fixture(scope="session")
def server(
    tiny_store_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("traces")
    with command_server(folder) as server:
        # DALI converts the loader's graph once in a process, which takes seconds.
        server.remember("preview", tiny_store_path, folder / "preview.png")
        yield server
