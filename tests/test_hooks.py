"""The hooks' listener over real sockets: who waits, who is answered, and who may begin."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest

from sidecar import hooks as hooks_module
from sidecar.errors import ConfigError
from sidecar.hooks import Hooks
from sidecar.monitor.channel_socket import ChannelError
from tests.e2e.support import until

DRAIN = SimpleNamespace(delay_s=0, timeout_s=60)


class Listening:
    """A listener, and what its hooks began."""

    def __init__(self, folder, drain=DRAIN):
        self.begun = []
        self.path = folder / "run" / "hooks.sock"
        self.hooks = Hooks(lambda: self.begun.append(time.monotonic()), drain)
        self.address = self.hooks.start("127.0.0.1:0", self.path)

    def over_tcp(self, method="GET", path="/drained", **options):
        return httpx.request(method, f"http://{self.address}{path}", timeout=30, **options)

    def over_the_socket(self, method="POST", path="/drain"):
        transport = httpx.HTTPTransport(uds=str(self.path))
        with httpx.Client(transport=transport, timeout=30) as client:
            return client.request(method, f"http://sidecar{path}")


@pytest.fixture
def listening(tmp_path):
    made = Listening(tmp_path)
    yield made
    made.hooks.close()
    assert not made.path.exists()


def is_waiting(listening):
    return any(call.state == "waiting" for call in list(listening.hooks._calls))


class Asking(threading.Thread):
    def __init__(self, ask):
        super().__init__(daemon=True)
        self._ask = ask
        self.answer = None
        self.start()

    def run(self):
        self.answer = self._ask()


def test_who_asks_before_the_drain_waits_for_its_end(listening):
    early = Asking(listening.over_tcp)
    until(lambda: listening.hooks._calls, "it has connected")
    beginner = Asking(listening.over_the_socket)
    until(lambda: listening.begun, "the drain has begun")
    late = Asking(listening.over_the_socket)
    until(lambda: len(listening.hooks._calls) == 3, "all three wait")
    assert [each.answer for each in (early, beginner, late)] == [None] * 3
    listening.hooks.over()
    for each in (early, beginner, late):
        each.join(30)
        assert (each.answer.status_code, each.answer.text) == (200, "drained\n")
    assert len(listening.begun) == 1
    assert listening.over_tcp().status_code == 200  # and who asks now does not wait


def test_a_drain_is_begun_over_the_socket_alone(listening):
    assert listening.over_tcp("POST", "/drain").status_code == 403
    assert listening.over_tcp("DELETE").status_code == 405
    assert listening.over_tcp("GET", "/v2").status_code == 404
    assert listening.begun == []
    assert listening.path.stat().st_mode & 0o777 == 0o600


def test_a_process_that_ends_answers_who_waits(tmp_path):
    for drained, status in ((True, 200), (False, 503)):
        listening = Listening(tmp_path / str(drained))
        waiting = Asking(listening.over_tcp)
        until(lambda at=listening: is_waiting(at), "it waits")
        if drained:
            listening.hooks.begun()
            listening.hooks.over()
        listening.hooks.close()
        waiting.join(30)
        assert waiting.answer.status_code == status


def test_a_drain_that_never_begins_or_ends_is_not_waited_for_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks_module, "_CLOSING_S", 0.2)
    listening = Listening(tmp_path, SimpleNamespace(delay_s=0, timeout_s=0.1))
    assert listening.over_tcp().status_code == 503
    assert listening.over_the_socket().status_code == 503
    assert len(listening.begun) == 1
    listening.hooks.close()


def test_what_a_connection_may_cost_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks_module, "_IO_S", 0.3)
    monkeypatch.setattr(hooks_module, "_CONNECTIONS_MAX", 4)
    listening = Listening(tmp_path)
    host, _, port = listening.address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=30) for _ in range(10)]
    assert max(len(listening.hooks._calls) for _ in range(50)) <= 4
    # They hold nobody up for long: each is closed in its time, and the next is taken.
    listening.hooks.over()
    assert listening.over_tcp().status_code == 200
    assert silent[0].recv(1) == b""
    for each in silent[1:]:
        each.close()
    long = socket.create_connection((host, int(port)), timeout=30)
    long.sendall(b"GET /drained HTTP/1.1\r\nX: " + b"x" * 9000)
    assert long.recv(100).startswith(b"HTTP/1.1 431 ")
    silent[0].close()
    long.close()
    listening.hooks.close()


def test_who_goes_away_is_forgotten(listening):
    host, _, port = listening.address.rpartition(":")
    gone = socket.create_connection((host, int(port)), timeout=30)
    gone.sendall(b"GET /drained HTTP/1.1\r\n\r\n")
    until(lambda: listening.hooks._calls, "it waits")
    gone.close()
    until(lambda: not listening.hooks._calls, "it is forgotten")


def test_a_place_that_is_taken_is_said(listening, tmp_path):
    with pytest.raises(ConfigError, match=r"gateway\.hooks"):
        Hooks(print, DRAIN).start(listening.address, tmp_path / "other.sock")
    with pytest.raises(ChannelError, match="another gateway"):
        Hooks(print, DRAIN).start("127.0.0.1:0", listening.path)
