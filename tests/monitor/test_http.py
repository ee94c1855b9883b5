"""The monitor's HTTP listener: bounded, and gone when it is told."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.errors import ConfigError
from sidecar.monitor.http import MonitorHttp
from tests.monitor.listening import until


async def _size(request: Request) -> Response:
    return JSONResponse({"size": len(await request.body())})


async def _fails(_request: Request) -> Response:
    raise RuntimeError("a bug of ours")


ROUTES = [Route("/size", _size, methods=["POST"]), Route("/fails", _fails)]


@pytest.fixture
def address() -> Iterator[str]:
    server = MonitorHttp("127.0.0.1:0", ROUTES, stall_s=0.5)
    yield server.start()
    server.stop(1)


def test_it_is_there_and_then_gone():
    server = MonitorHttp("127.0.0.1:0", [])
    address = server.start()
    assert httpx.get(f"http://{address}/healthz").json() == {"status": "ok"}
    server.stop(1)
    server.stop(1)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}/healthz")


def test_stopping_what_was_never_started_does_nothing():
    MonitorHttp("127.0.0.1:0", []).stop(1)


def test_an_address_that_is_taken_is_a_mistake_with_a_name(address):
    with pytest.raises(ConfigError, match=r"monitor\.http: cannot listen on"):
        MonitorHttp(address, []).start()


def test_a_unix_socket_will_do(tmp_path):
    path = tmp_path / "http.sock"
    server = MonitorHttp(f"unix:{path}", [])
    assert server.start() == f"unix:{path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://monitor/healthz").status_code == 200
    server.stop(1)
    assert not path.exists()


def test_a_path_that_is_none_is_404(address):
    assert httpx.get(f"http://{address}/v1/nothing").status_code == 404


def test_a_body_over_the_bound_is_refused(address):
    def much() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(2**20)

    response = httpx.post(f"http://{address}/size", content=much(), timeout=60)
    assert response.status_code == 413
    assert httpx.post(f"http://{address}/size", content=b"abc").json() == {"size": 3}


def test_a_body_that_never_comes_is_not_waited_for(address):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        answer = connection.recv(65536)
    assert b" 408 " in answer.splitlines()[0]


def test_a_head_that_never_ends_is_not_waited_for(address):
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        assert connection.recv(65536) == b""


def test_what_fails_is_said_in_the_log_and_not_to_the_caller(address, caplog):
    with caplog.at_level(logging.ERROR, "sidecar.monitor.http"):
        response = httpx.get(f"http://{address}/fails")
        assert response.status_code == 500
        assert "bug" not in response.text
        until(lambda: "a bug of ours" in caplog.text, "it is in the log")


def test_connections_are_few(address):
    host, _, port = address.rpartition(":")
    held = [socket.create_connection((host, int(port)), 60) for _ in range(63)]
    try:
        # Those that say nothing are ended after a while; until then there is no more room.
        codes = set()
        for _ in range(8):
            try:
                codes.add(httpx.get(f"http://{address}/healthz", timeout=60).status_code)
            except httpx.TransportError:
                codes.add(503)  # closed at once
        assert codes <= {200, 503}
    finally:
        for connection in held:
            connection.close()
