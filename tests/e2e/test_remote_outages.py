"""The other server is not there, dies, hangs, and comes back; the sidecar is never restarted."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e import remotes
from tests.e2e.remotes import HERE, answers
from tests.e2e.support import (
    Client,
    Server,
    await_ready,
    fails,
    floats,
    launch,
    request,
    running,
    until,
    write,
)
from tests.support.ports import free_port
from tests.support.upstream import UpstreamProcess

#: Readiness is looked at once a second, and a look may take one; the rest is for a busy machine.
NOTICED_WITHIN_S = 20
AFTER_MS = 400


@pytest.fixture
def other() -> Iterator[UpstreamProcess]:
    with UpstreamProcess() as running_there:
        yield running_there


class Views:
    """Everything that says whether a server is ready, and what must say "live" all the time."""

    def __init__(self, server: Server, client: Client, model: str) -> None:
        self._client, self._model = client, model
        self._url = f"http://{server.addresses['http']}/v2"

    def ready(self) -> set[bool]:
        """What they say; one value when they agree."""
        call = self._client.call
        url = f"{self._url}/models/{self._model}/ready"
        return {
            self._client.health() == "SERVING",
            call("ServerReady").ready,
            call("ModelReady", {"name": self._model}).ready,
            call("ModelReady", {"name": self._model, "version": "2"}).ready,
            httpx.get(f"{self._url}/health/ready", timeout=20).status_code == 200,
            httpx.get(url, timeout=20).status_code == 200,
        }

    def live(self) -> bool:
        return (
            self._client.call("ServerLive").live
            and httpx.get(f"{self._url}/health/live", timeout=20).status_code == 200
        )


def test_a_server_that_dies_is_noticed_and_found_again(other, tmp_path):
    config = write(tmp_path, [remotes.in_front(other.address)])
    with running(config) as server, Client(server.addresses["grpc"]) as client:
        views = Views(server, client, HERE)
        assert views.ready() == {True}
        assert floats(client.infer(HERE, 1)) == [1]
        feed = threading.Event()

        def requests() -> Iterator[pb.ModelInferRequest]:
            yield request(HERE, 5)
            feed.wait(20)

        stream = client.stream(requests())
        assert floats(next(stream).infer_response) == [5]
        other.kill()
        with fails(grpc.StatusCode.UNAVAILABLE) as caught:
            next(stream)
        feed.set()
        for _ in range(5):
            with fails(grpc.StatusCode.UNAVAILABLE) as caught:  # at once, not at its deadline
                client.infer(HERE, 1)
            assert caught[0].details() == "the upstream server cannot be reached"
        until(lambda: views.ready() == {False}, "not ready", within_s=NOTICED_WITHIN_S)
        assert views.live()
        with UpstreamProcess(other.port):
            until(lambda: views.ready() == {True}, "ready again", within_s=NOTICED_WITHIN_S)
            assert floats(client.infer(HERE, 2)) == [2]
        assert "Traceback" not in server.text


def test_a_server_that_hangs_stops_no_probe(other, tmp_path):
    tree = [remotes.in_front(other.address, name) for name in (HERE, "b", "c", "d", "e", "f")]
    with running(write(tmp_path, tree)) as server, Client(server.addresses["grpc"]) as client:
        views = Views(server, client, HERE)
        assert views.ready() == {True}
        other.signal(signal.SIGSTOP)
        asked = [
            client.stub("ModelReady").future(pb.ModelReadyRequest(name=name), timeout=60)
            for name in ("b", "c", "d", "e", "f") * 4
        ]
        began = time.monotonic()
        assert client.health() in ("SERVING", "NOT_SERVING")
        assert time.monotonic() - began < 3  # twenty that ask do not stand before it
        for call in asked:
            call.result()
        began = time.monotonic()
        until(lambda: views.ready() == {False}, "not ready", within_s=NOTICED_WITHIN_S)
        assert views.live()
        with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
            client.infer(HERE, 1, timeout=0.3)
        other.signal(signal.SIGCONT)
        until(lambda: views.ready() == {True}, "ready again", within_s=NOTICED_WITHIN_S)
        assert floats(client.infer(HERE, 2)) == [2]


class Load:
    """Clients that ask one after the other; every answer is checked."""

    def __init__(self, client: Client, model: str, threads: int = 6) -> None:
        self._client, self._model = client, model
        self._stop = threading.Event()
        self.serving = self.fallback = 0
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        value = 0
        while not self._stop.is_set():
            value += 1
            try:
                fallen = answers(self._client, self._model, value % 100)
            except BaseException as error:  # noqa: BLE001 - looked at below
                self.failures.append(error)
                continue
            if fallen:
                self.fallback += 1
            else:
                self.serving += 1

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)


def grows(load: Load, name: str, by: int, *, within_s: float = 20) -> None:
    least = getattr(load, name) + by
    until(lambda: getattr(load, name) >= least, f"{name} grows by {by}", within_s=within_s)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_no_request_fails_where_there_is_a_fallback(other, tmp_path: Path, how):
    tree = [remotes.guarded(other.address, tmp_path, fallback={"after_ms": AFTER_MS})]
    with running(write(tmp_path, tree)) as server, Client(server.addresses["grpc"]) as client:
        load = Load(client, "guarded")
        try:
            grows(load, "serving", 300)
            other.signal(how)
            grows(load, "fallback", 30 if how == signal.SIGSTOP else 300)
            # Who names the version gets that or none: so it shows when the outage is noticed.
            named = {"name": "guarded", "version": "2"}
            noticed = time.monotonic() + NOTICED_WITHIN_S
            while client.call("ModelReady", named).ready:
                assert time.monotonic() < noticed
            assert client.call("ServerReady").ready
            assert client.call("ModelReady", {"name": "guarded"}).ready
            assert client.health() == "SERVING"
            grows(load, "fallback", 10)
            if how == signal.SIGSTOP:
                other.signal(signal.SIGCONT)
                grows(load, "serving", 300)
            else:
                other.kill()
                with UpstreamProcess(other.port):
                    grows(load, "serving", 300)
        finally:
            load.stop()
        assert load.failures == []
        counted = remotes.counted(client, "guarded", "1")
        assert (counted["success"], counted["fail"]) == (load.fallback, 0)
        counted = remotes.counted(client, "guarded")
        assert (counted["success"], counted["fail"]) == (load.serving, 0)


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_server_that_is_not_there_at_the_start_is_one_clear_message(tmp_path, command):
    address = f"127.0.0.1:{free_port()}"
    model = {"name": HERE, "variants": [remotes.remote(address, connect_timeout_s=1)]}
    began = time.monotonic()
    server = launch(write(tmp_path, [model]), command)
    try:
        assert server.wait(within_s=20) == 1
        assert time.monotonic() - began >= 1
        [line] = [line for line in server.text.splitlines() if line.startswith("error")]
        assert f"{address}: model '{HERE}' did not become ready within 1 s" in line
        assert "runtime.address" in line
        assert "Traceback" not in server.text
    finally:
        server.kill()


def test_a_server_that_starts_after_the_sidecar_is_waited_for(tmp_path):
    """In a pod both start at the same time."""
    port = free_port()
    server = launch(write(tmp_path, [remotes.in_front(f"127.0.0.1:{port}")]))
    try:
        until(lambda: "loading here:2/remote" in server.text, "it has begun to wait")
        with UpstreamProcess(port):
            await_ready(server)
            with Client(server.addresses["grpc"]) as client:
                assert floats(client.infer(HERE, 1)) == [1]
    finally:
        server.kill()


def test_ending_while_it_waits_leaves_nothing_behind(tmp_path):
    server = launch(write(tmp_path, [remotes.in_front(f"127.0.0.1:{free_port()}")]))
    try:
        until(lambda: "loading here:2/remote" in server.text, "it has begun to wait")
        os.kill(server.process.pid, signal.SIGTERM)
        server.wait(within_s=60)
        assert "Traceback" not in server.text
    finally:
        server.kill()
