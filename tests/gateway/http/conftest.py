"""Servers that the tests of this folder share; a core that is fresh for every test."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.gateway.http.serving import MAX_BODY, serving, until
from tests.gateway.numpy_backend import NumpyBackend


@pytest.fixture(scope="package")
def core() -> Iterator[NumpyBackend]:
    core = NumpyBackend(max_requests=64, max_bytes=4 * MAX_BODY)
    yield core
    core.close()


@pytest.fixture
def backend(core: NumpyBackend) -> Iterator[NumpyBackend]:
    core.reset()
    yield core
    core.reset()
    until(lambda: core.in_flight == 0 and core.bytes_in_flight == 0)


@pytest.fixture(scope="package")
def addresses(core: NumpyBackend) -> Iterator[dict[str, str]]:
    """A server per parser for all tests that leave it as it was: stopping one takes a while."""
    with serving(core, parser="h11") as h11, serving(core, parser="auto") as auto:
        yield {"h11": h11[1], "auto": auto[1]}


@pytest.fixture
def parser() -> str:
    return "auto"


@pytest.fixture
def address(addresses: dict[str, str], parser: str, backend: NumpyBackend) -> str:
    del backend  # fresh for every test
    return addresses[parser]


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
        yield client
