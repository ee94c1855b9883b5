"""Shutdown fails no request: readiness goes first, what comes is served, connections run out."""

from __future__ import annotations

import threading
import time

import grpc
import httpx
import pytest

from tests.e2e.support import (
    Client,
    Sleeper,
    await_ready,
    can_connect,
    floats,
    launch,
    onnx_times,
    request,
    running,
    until,
    variant,
    write,
)
from tests.support.ports import free_addresses

AGE_S = 1
#: How long a drain goes on accepting where a test does something meanwhile.
DELAY_S = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("drain")
    onnx_times(made, 2, "m.onnx")
    return made


@pytest.fixture(scope="module")
def tree(folder):
    return [{"name": "m", "variants": [variant("onnx", folder / "m.onnx")]}]


def test_readiness_goes_first_and_everything_is_accepted_meanwhile(folder, tree):
    config = write(
        folder, tree, health="127.0.0.1:0", drain={"delay_s": DELAY_S, "timeout_s": 120},
        grpc={"max_connection_age_s": AGE_S},
    )  # fmt: skip
    with running(config) as server:
        address, base = server.addresses["grpc"], f"http://{server.addresses['http']}/v2"
        with Client(address) as old, Client(server.addresses["health"]) as probe:
            assert old.infer("m", 1)
            assert probe.health() == "SERVING"
            server.signal()
            began = time.monotonic()
            until(lambda: probe.health() == "NOT_SERVING", "the probe sees it")
            assert httpx.get(f"{base}/health/ready", timeout=20).status_code == 503
            assert httpx.get(f"{base}/health/live", timeout=20).status_code == 200
            assert not old.call("ServerReady").ready
            assert old.call("ServerLive").live
            # Who has not noticed yet is served, on old connections and on new ones.
            with Client(address) as new:
                assert floats(new.infer("m", 3)) == [6.0]
            body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3]}]}
            answer = httpx.post(f"{base}/models/m/infer", json=body, timeout=20)
            assert answer.json()["outputs"][0]["data"] == [6]
            assert answer.headers["connection"] == "close"
            assert can_connect(address)
            assert time.monotonic() - began < DELAY_S
            until(lambda: not can_connect(address), "the listener is closed")
            assert time.monotonic() - began >= DELAY_S
            # The idle connections are asked to go when their time has come: nobody waits longer.
            assert server.wait() == 0
        assert "are cut" not in server.text


def test_what_is_in_flight_is_finished(folder):
    sleeper = Sleeper(folder)
    config = write(
        folder, [{"name": "m", "variants": [sleeper.variant()]}],
        drain={"delay_s": 0, "timeout_s": 20}, grpc={"max_connection_age_s": AGE_S},
        pool={"running": 8},
    )  # fmt: skip
    with running(config) as server, Client(server.addresses["grpc"]) as client:
        answers: dict[str, float] = {}

        def over_http() -> None:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1300]}
            url = f"http://{server.addresses['http']}/v2/models/m/infer"
            reply = httpx.post(url, json={"inputs": [tensor]}, timeout=60)
            answers["http"] = reply.json()["outputs"][0]["data"][0]

        def over_a_stream() -> None:
            messages = [request("m", 1200 + n) for n in range(3)]
            answers["stream"] = sum(
                floats(element.infer_response)[0] for element in client.stream(iter(messages))
            )

        threads = [threading.Thread(target=work) for work in (over_http, over_a_stream)]
        for thread in threads:
            thread.start()
        call = client.stub("ModelInfer").future(request("m", 1400), timeout=60)
        until(lambda: len(sleeper.executed()) == 5, "all five are being executed")
        server.signal()
        until(lambda: "draining" in server.text, "the drain has begun")
        assert floats(call.result()) == [2800.0]
        for thread in threads:
            thread.join(90)
        assert answers == {"http": 2600.0, "stream": 2.0 * (1200 + 1201 + 1202)}
        assert server.wait() == 0
        assert "are cut" not in server.text
        assert "Traceback" not in server.text


def test_a_stream_that_never_ends_is_cut_when_the_time_is_over(folder, tree):
    config = write(
        folder, tree, drain={"delay_s": 0, "timeout_s": 1}, grpc={"max_connection_age_s": AGE_S}
    )
    with running(config) as server, Client(server.addresses["grpc"]) as client:
        ended = threading.Event()

        def endless():
            yield request("m", 1)
            ended.wait(60)

        stream = client.stream(endless())
        assert floats(next(stream).infer_response) == [2.0]
        server.signal()
        assert server.wait() == 0
        assert "1 connections are cut" in server.text
        with pytest.raises(grpc.RpcError):
            next(stream)
        ended.set()


class Load(threading.Thread):
    """One long-lived channel that never stops sending."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._stopped = threading.Event()
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        with Client(self._address) as client:
            while not self._stopped.is_set():
                try:
                    client.infer("m", 1, timeout=40)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                else:
                    self.answered += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(60)


class HttpLoad(Load):
    """The same over HTTP, where only a refused connection may be tried again."""

    def run(self) -> None:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
        with httpx.Client(timeout=40) as client:
            while not self._stopped.is_set():
                try:
                    reply = client.post(f"http://{self._address}/v2/models/m/infer", json=body)
                except httpx.ConnectError:
                    self._stopped.wait(0.02)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    self.answered += reply.status_code == 200
                    if reply.status_code != 200:
                        self.failures.append(reply.text)


def test_no_request_fails_over_three_restarts(folder, tree):
    grpc_address, http_address = free_addresses(2)
    config = write(
        folder, tree, drain={"delay_s": 0.3, "timeout_s": 20},
        grpc={"address": grpc_address, "max_connection_age_s": AGE_S},
        http={"address": http_address},
    )  # fmt: skip
    loads = [Load(grpc_address) for _ in range(4)] + [HttpLoad(http_address)]
    server = launch(config)
    try:
        await_ready(server)
        for load in loads:
            load.start()
        for _ in range(3):
            answered = [load.answered for load in loads]
            until(
                lambda answered=answered: all(
                    load.answered > n for load, n in zip(loads, answered, strict=True)
                ),
                "every channel is answered",
            )
            server.signal()
            assert server.wait() == 0
            assert "are cut" not in server.text
            server = launch(config)
            await_ready(server)
        for load in loads:
            load.stop()
    finally:
        server.kill()
    assert [load.failures for load in loads] == [[]] * len(loads)
    assert all(load.answered for load in loads)
