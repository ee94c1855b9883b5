"""One server of each kind for all client tests, started when the first test needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients import runner, servers


@pytest.fixture(scope="session")
def target_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Kind of server → where it is. All must end by SIGTERM with exit code 0."""
    runner.require_environment()
    running: dict[str, servers.Server] = {}
    failed: dict[str, str] = {}

    def get(kind: str) -> dict[str, Any]:
        if kind in failed:  # its first test waited for it; the others need not
            pytest.fail(f"the server {kind!r} did not start: {failed[kind]}", pytrace=False)
        if kind not in running:
            try:
                running[kind] = servers.start(kind, tmp_path_factory.mktemp(kind))
            except AssertionError as error:
                failed[kind] = str(error)
                raise
        server = running[kind]
        code = server.process.poll()
        assert code is None, f"the server died with exit code {code}:\n{server.tail()}"
        return server.target

    yield get
    problems = []
    for kind, server in running.items():
        try:
            server.stop()
        except AssertionError as error:
            problems.append(f"{kind}: {error}")
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def scripts() -> runner.Scripts:
    return runner.Scripts()
