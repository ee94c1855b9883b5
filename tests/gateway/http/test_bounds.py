"""What HTTP clients may not exceed: sizes, connections, time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx

from sidecar.gateway.http_protocol import HttpLimits
from tests.gateway.http.serving import (
    BODY,
    INFER,
    MAX_BODY,
    QUICK,
    both_parsers,
    connect,
    error_of,
    httpx_ok,
    read_all,
    serving,
    until,
)
from tests.gateway.numpy_backend import NumpyBackend


@both_parsers
def test_a_body_over_the_bound_is_refused_before_it_is_read(
    address: str, backend: NumpyBackend
) -> None:
    with connect(address) as sock:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
        sock.sendall(head.encode())  # and nothing more
        answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"max_body_bytes" in answer
        assert backend.bytes_peak == 0
        # A client that sends it all the same is not cut off: it could not read the answer.
        sock.sendall(bytes(MAX_BODY + 1))
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'{"live":true}' in read_all(sock)


@both_parsers
def test_a_chunked_body_is_counted(client: httpx.Client, backend: NumpyBackend) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    response = client.post(INFER, content=pieces())
    assert response.status_code == 413
    until(lambda: backend.in_flight == 0 and backend.bytes_in_flight == 0)


def test_admission_refuses_with_429() -> None:
    backend = NumpyBackend(max_requests=1, max_bytes=1000)
    try:
        with (
            serving(backend) as (_, address),
            httpx.Client(base_url=f"http://{address}", timeout=60) as client,
        ):
            assert client.post(INFER, content=bytes(1001)).status_code == 429
            backend.gate.clear()
            first = threading.Thread(target=client.post, args=(INFER,), kwargs={"json": BODY})
            first.start()
            assert backend.entered.acquire(timeout=60)
            response = client.post(INFER, json=BODY)
            assert (response.status_code, "in flight" in error_of(response)) == (429, True)
            backend.gate.set()
            first.join()
            assert client.post(INFER, json=BODY).status_code == 200
    finally:
        backend.close()


@both_parsers
def test_slow_and_greedy_clients_are_cut_off(backend: NumpyBackend, parser: str) -> None:
    with serving(backend, parser=parser, limits=QUICK) as (_, address):
        with connect(address) as silent:
            assert read_all(silent) == b""
        with connect(address) as slow_head:
            slow_head.sendall(b"GET /v2 HTTP/1.1\r\nHo")
            assert read_all(slow_head) == b""
        with connect(address) as second_head:
            second_head.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v")
            assert read_all(second_head).startswith(b"HTTP/1.1 200")
        with connect(address) as slow_body:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
            slow_body.sendall(head.encode() + b"{")
            answer = read_all(slow_body)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"no byte of the body came" in answer
        with connect(address) as long_head:
            long_head.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
            try:
                for _ in range(64):
                    long_head.sendall(b"a" * 65536)
            except ConnectionError:
                pass
            else:
                assert read_all(long_head).startswith(b"HTTP/1.1 400")
        assert httpx.get(f"http://{address}/v2/health/live", timeout=60).status_code == 200
        until(lambda: backend.in_flight == 0)


def test_connections_are_bounded(backend: NumpyBackend) -> None:
    limits = HttpLimits(connections=4)
    with serving(backend, limits=limits) as (_, address):
        kept = [connect(address) for _ in range(4)]
        for sock in kept:
            sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        with connect(address) as fifth:
            assert read_all(fifth) == b""
        kept.pop().close()
        until(lambda: httpx_ok(address))
        for sock in kept:
            sock.close()
