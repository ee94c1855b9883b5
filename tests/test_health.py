"""Health checks that watchers cannot stop, whatever they do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.health import HealthServicer

Statuses = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING = Statuses.SERVING, Statuses.NOT_SERVING
LIMIT_S = 60


@contextmanager
def serving(servicer: HealthServicer) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer.add_to_server(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        assert server.stop(0).wait(LIMIT_S)
        servicer.close()


@pytest.fixture
def servicer() -> HealthServicer:
    made = HealthServicer()
    made.set("", NOT_SERVING)
    return made


def ask(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def test_check_knows_what_was_set(servicer: HealthServicer) -> None:
    with serving(servicer) as address, grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(ask(), timeout=LIMIT_S).status == NOT_SERVING
        servicer.set("", SERVING)
        assert stub.Check(ask(), timeout=LIMIT_S).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(ask("nobody"), timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_watchers_hear_of_every_change_and_hold_no_thread(servicer: HealthServicer) -> None:
    with serving(servicer) as address, grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(ask(), timeout=LIMIT_S) for _ in range(40)]
        assert [next(watch).status for watch in watches] == [NOT_SERVING] * 40
        servicer.set("", NOT_SERVING)  # no news
        for status in (SERVING, NOT_SERVING):
            servicer.set("", status)
            assert [next(watch).status for watch in watches] == [status] * 40
        unknown = stub.Watch(ask("later"), timeout=LIMIT_S)
        assert next(unknown).status == Statuses.SERVICE_UNKNOWN
        servicer.set("later", SERVING)
        assert next(unknown).status == SERVING
        assert stub.Check(ask(), timeout=LIMIT_S).status == NOT_SERVING


def test_a_watcher_may_go_while_the_state_changes(servicer: HealthServicer) -> None:
    """With the library's own servicer this ends in a deadlock within a second."""
    stop = threading.Event()
    rounds: list[int] = []

    def come_and_go(address: str) -> None:
        while not stop.is_set():
            with grpc.insecure_channel(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                watches = [stub.Watch(ask(), timeout=LIMIT_S) for _ in range(8)]
                with suppress(grpc.RpcError):
                    for watch in watches:
                        next(watch)
                for watch in watches:
                    watch.cancel()
            rounds.append(1)

    def change() -> None:
        number = 0
        while len(rounds) < 12:
            servicer.set("", (SERVING, NOT_SERVING)[number % 2])
            number += 1
        changed.set()

    changed = threading.Event()
    with serving(servicer) as address:
        visitors = [threading.Thread(target=come_and_go, args=(address,)) for _ in range(2)]
        for thread in (*visitors, threading.Thread(target=change, daemon=True)):
            thread.start()
        try:
            assert changed.wait(LIMIT_S), f"stuck after {len(rounds)} rounds"
        finally:
            stop.set()
            for thread in visitors:
                thread.join(LIMIT_S)
        servicer.set("", SERVING)
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(ask(), timeout=LIMIT_S).status == SERVING
            assert next(stub.Watch(ask(), timeout=LIMIT_S)).status == SERVING
    deadline_s = monotonic() + LIMIT_S
    while servicer._watchers and monotonic() < deadline_s:
        stop.wait(0)
    assert servicer._watchers == {}, "nobody is remembered"
