"""An HTTP server over a small real core, and what tests say to it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from sidecar.config import GatewayConfig
from sidecar.gateway.http import HttpServer
from sidecar.gateway.http_protocol import HttpLimits
from tests.gateway.numpy_backend import NumpyBackend

INFER = "/v2/models/identity/infer"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]}
MAX_BODY = 1 << 20
QUICK = HttpLimits(
    head_timeout_s=0.3, body_stall_s=0.3, head_bytes=8192, keep_alive_s=1, connections=8
)


@contextmanager
def serving(
    backend: NumpyBackend,
    *,
    parser: str = "auto",
    limits: HttpLimits | None = None,
    address: str = "127.0.0.1:0",
    **gateway: Any,
) -> Iterator[tuple[HttpServer, str]]:
    http = {"address": address, "max_body_bytes": MAX_BODY} | gateway.pop("http", {})
    config = GatewayConfig.model_validate({"http": http} | gateway)
    server = HttpServer(config, backend, parser=parser, limits=limits)
    try:
        yield server, server.start()
    finally:
        backend.gate.set()
        backend.loads.set()
        server.stop(5)


#: Which one runs depends on what is installed: what touches HTTP itself is tested over both.
both_parsers = pytest.mark.parametrize("parser", ["h11", "auto"])


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read_all(sock: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := sock.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def error_of(response: httpx.Response) -> str:
    body = response.json()
    assert list(body) == ["error"]
    return str(body["error"])


def httpx_ok(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/v2/health/live", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
