"""Fixtures that many packages share. Models that take long to make are made once a session."""

from __future__ import annotations

import shutil
import signal
import uuid
from collections.abc import Iterator

import pytest

from tests.support import models, postgres

# A shell without job control starts what it puts in the background deaf to Ctrl-C, and children
# inherit that: of the servers here, some are to be ended so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def aoti_mlp(tmp_path_factory: pytest.TempPathFactory):
    """An AOTInductor package of the 32→64→10 network that does not carry its signature."""
    if shutil.which("g++") is None:
        pytest.skip("no g++: AOTInductor cannot compile here")
    return models.torch_aoti_mlp(tmp_path_factory.mktemp("aoti"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """A real PostgreSQL for all tests of a session: who stops it starts it again."""
    if postgres.binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    with postgres.postgres_server() as server:
        yield server


@pytest.fixture
def database_url(postgres_server: postgres.PostgresServer) -> str:
    """An empty database of its own on it."""
    return postgres_server.make(f"test-{uuid.uuid4().hex[:12]}")
