"""What HTTP clients are told that got something wrong, or met a fault."""

from __future__ import annotations

import random
import socket
from typing import Any

import httpx
import pytest

from sidecar import errors
from tests.gateway.http.serving import (
    BODY,
    INFER,
    both_parsers,
    connect,
    error_of,
    httpx_ok,
    read_all,
    until,
)
from tests.gateway.numpy_backend import NumpyBackend


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (errors.InvalidRequestError("said"), 400),
        (errors.NotFoundError("said"), 404),
        (errors.ConflictError("said"), 409),
        (errors.OverloadedError("said"), 429),
        (errors.CancelledError("said"), 499),
        (errors.ExecutionError("said"), 500),
        (errors.UpstreamError("said", "DEADLINE_EXCEEDED"), 504),
        (errors.UnsupportedError("said"), 501),
        (errors.UnavailableError("said"), 503),
        (errors.DeadlineError("said"), 504),
        (errors.PermissionDeniedError("said"), 403),
    ],
)
def test_errors_become_codes(
    client: httpx.Client, backend: NumpyBackend, failure: Exception, status: int
) -> None:
    backend.failure = failure
    response = client.post(INFER, json=BODY)
    assert (response.status_code, error_of(response)) == (status, "said")
    assert response.headers["x-request-id"]


def test_a_bug_tells_the_client_nothing(
    client: httpx.Client, backend: NumpyBackend, caplog: Any
) -> None:
    backend.failure = RuntimeError("/secret/path")
    response = client.post(INFER, json=BODY, headers={"x-request-id": "id-of-the-bug"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert any("id-of-the-bug" in record.getMessage() for record in caplog.records)
    backend.failure = None
    assert client.post(INFER, json=BODY).status_code == 200


@pytest.mark.parametrize(
    "value", ["-1", "+5", "1_0", "abc", "", "1e3", "9" * 40, "\u0663".encode()]
)
def test_wrong_header_length(client: httpx.Client, value: Any) -> None:
    response = client.post(INFER, json=BODY, headers={"Inference-Header-Content-Length": value})
    assert (response.status_code, "ontent" in error_of(response)) == (400, True)


def test_no_such_route(client: httpx.Client) -> None:
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models/identity/nothing", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
        ("DELETE", "/v2/models/identity", 405),
    ):
        response = client.request(method, path)
        assert response.status_code == status, path
        assert path in error_of(response)


GARBAGE = [
    b"\x00" * 100,
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS greeting
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"Content-Length: 6\r\n\r\n12345",
    b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"\r\nZZ\r\n",
    b"POST /v2/models/identity/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    b"GET /%ff%00%ed%a0%80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v2/models/%ed%a0%80/ready HTTP/1.1\r\nHost: x\r\nX: \xff\xfe\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
]


@both_parsers
def test_malformed_http_kills_nothing(address: str, backend: NumpyBackend) -> None:
    for garbage in GARBAGE:
        with connect(address) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
            assert b"Traceback" not in answer
            assert b" 500 " not in answer[:20], garbage
    good = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnull".encode()
    chooser = random.Random(7)
    for _ in range(150):
        mutated = bytearray(good)
        for _ in range(chooser.randint(1, 6)):
            mutated[chooser.randrange(len(mutated))] = chooser.randrange(256)
        with connect(address) as sock:
            sock.sendall(bytes(mutated))
            sock.shutdown(socket.SHUT_WR)
            answer = read_all(sock)
            assert b" 500 " not in answer[:20], bytes(mutated)
    assert httpx_ok(address)
    until(lambda: backend.in_flight == 0 and backend.bytes_in_flight == 0)
