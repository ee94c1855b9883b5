"""Stock clients, unmodified, against our server: see docs/clients.md for what is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.runner import Scripts, cases

# A server's start and a whole script can fall to one test; both have shorter limits of their own.
pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("script", "server", "api", "check"),
    cases(
        ("triton_grpc", "open", ""),
        ("triton_refusals", "open", ""),
        ("triton_streams", "open", ""),
        ("triton_http", "open", ""),
        ("triton_shm", "open", "grpc"),
        ("triton_shm", "open", "http"),
        ("triton_control", "open", "grpc"),
        ("triton_control", "open", "http"),
        ("kserve_clients", "open", ""),
        ("grpc_services", "open", ""),
        ("triton_shm", "workers", "grpc"),
        ("triton_shm", "workers", "http"),
        ("triton_control", "workers", "grpc"),
        ("triton_control", "workers", "http"),
        ("triton_secure", "tls", ""),
        ("grpc_services", "tls", ""),
        ("triton_secure", "mutual", ""),
        ("kserve_clients", "mutual", ""),
    ),
)
def test_check(
    script: str, server: str, api: str, check: str,
    scripts: Scripts, target_of: Callable[[str], dict[str, Any]],
) -> None:  # fmt: skip
    scripts.verify(script, server, api, check, target_of(server))
