"""The HTTP server's start, drain and stop, and the addresses it listens on."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpx
import pytest

from sidecar import errors
from sidecar.config import GatewayConfig
from sidecar.gateway.http import HttpServer
from tests.gateway.http.serving import BODY, INFER, both_parsers, httpx_ok, serving, until
from tests.gateway.numpy_backend import NumpyBackend


@both_parsers
def test_drain_closes_connections_after_their_answer(backend: NumpyBackend, parser: str) -> None:
    with (
        serving(backend, parser=parser) as (http, address),
        httpx.Client(base_url=f"http://{address}", timeout=60) as client,
    ):
        assert "connection" not in client.post(INFER, json=BODY).headers
        http.drain()
        for path in ("/v2/health/live", "/nowhere"):
            assert client.get(path).headers["connection"] == "close"
        assert client.post(INFER, json=BODY).headers["connection"] == "close"


@both_parsers
def test_stop_lets_requests_end(backend: NumpyBackend, parser: str) -> None:
    answers: list[httpx.Response] = []
    with serving(backend, parser=parser) as (http, address):
        backend.gate.clear()

        def post() -> None:
            answers.append(httpx.post(f"http://{address}{INFER}", json=BODY, timeout=60))

        client = threading.Thread(target=post)
        client.start()
        assert backend.entered.acquire(timeout=60)
        stopper = threading.Thread(target=http.stop, args=(60,))
        stopper.start()
        until(lambda: not httpx_ok(address))  # nothing new is accepted, and the old one still runs
        assert stopper.is_alive()
        backend.gate.set()
        stopper.join(60)
        client.join(60)
        assert [answer.status_code for answer in answers] == [200]
        http.stop(1)  # again: nothing happens


def test_stop_does_not_wait_for_ever(backend: NumpyBackend) -> None:
    answers: list[httpx.Response] = []
    with serving(backend) as (http, address):
        backend.gate.clear()

        def post() -> None:
            answers.append(httpx.post(f"http://{address}{INFER}", json=BODY, timeout=60))

        client = threading.Thread(target=post)
        client.start()
        assert backend.entered.acquire(timeout=60)
        http.stop(1)
        client.join(60)
        assert [answer.status_code for answer in answers] == [503]
        assert not httpx_ok(address)


def test_addresses(backend: NumpyBackend, tmp_path: Any) -> None:
    with serving(backend) as (_, address):
        with pytest.raises(errors.ConfigError, match="cannot listen on"):
            HttpServer(
                GatewayConfig.model_validate({"http": {"address": address}}), backend
            ).start()
        with (
            pytest.raises(errors.ConfigError, match="cannot listen on"),
            serving(backend, address="no-such-host.invalid:80"),
        ):
            pass
    path = tmp_path / "http.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    with serving(backend, address=f"unix:{path}") as (_, address):
        assert address == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=60) as client:
            assert client.post(f"http://x{INFER}", json=BODY).status_code == 200
        with pytest.raises(errors.ConfigError, match="in use"), serving(backend, address=address):
            pass
    assert not path.exists()


def test_workers_share_a_port(backend: NumpyBackend) -> None:
    with serving(backend, workers=2) as (_, address):
        with serving(backend, workers=2, address=address) as (_, second):
            assert second == address
            assert httpx_ok(address)
        assert httpx_ok(address)
