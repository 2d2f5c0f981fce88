"""A server that runs `train` in forked processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.forked import Server, command_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with command_server(tmp_path_factory.mktemp("traces")) as server:
        yield server
