"""A gateway of several replicas serves nobody before it has their route table: bounded, said."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar import route_table
from sidecar.gateway.route_follower import RouteFollower
from sidecar.monitor.route_book import RouteBook
from sidecar.route_table import Route
from tests.e2e.support import Client, await_ready, launch, onnx_times, request, until
from tests.e2e.support import variant as on_disk
from tests.gateway.served import Served, configure, make_models, model, serving, variant
from tests.support.ports import free_addresses

LONG_S = 600.0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    make_models(tmp_path)
    with serving(configure(tmp_path, model("m", variant("any", "1"), variant("any", "2")))) as one:
        yield one


def follower(served: Served, path: Path, wait_s: float | None) -> RouteFollower:
    gateway = served.gateway
    return RouteFollower(path, gateway.registry, gateway.page, wait_s)


def missing(served: Served) -> int:
    return served.gateway.page.server_counters()["route_missing"]


def write(path: Path, **routes: Route) -> None:
    with RouteBook(path).changing() as table:
        table.update(routes)


def test_alone_nobody_waits(served, tmp_path):
    follower(served, tmp_path / "none.json", None).await_table(threading.Event())
    assert missing(served) == 0


@pytest.mark.parametrize("routes", [{}, {"m": Route(3, {"1": 1.0}, "rollback", "", 1)}])
def test_the_first_table_ends_the_wait_also_an_empty_one(served, tmp_path, routes):
    path = tmp_path / route_table.NAME
    following = follower(served, path, LONG_S)
    following.look()
    waiting = threading.Thread(target=following.await_table, args=(threading.Event(),))
    waiting.start()
    path.write_bytes(b"{")  # what is damaged is no table
    until(lambda: following.problem, "it is seen")
    assert waiting.is_alive()
    write(path, **routes)
    waiting.join(60)
    assert not waiting.is_alive()
    assert (following.problem, missing(served)) == ("", 0)
    assert served.gateway.registry.entry("m").revision == (3 if routes else 0)


def test_who_has_a_table_goes_by_it_at_once(served, tmp_path):
    path = tmp_path / route_table.NAME
    write(path, m=Route(3, {"1": 1.0}, "rollback", "", 1))
    follower(served, path, LONG_S).await_table(threading.Event())
    assert served.gateway.registry.entry("m").shares == {"1": 1.0}


def test_the_wait_is_bounded_counted_and_said_until_the_table_is_there(served, tmp_path, caplog):
    path = tmp_path / route_table.NAME
    following = follower(served, path, 0.0)
    changes: list[str] = []
    following.on_change = lambda: changes.append(following.problem)
    following.await_table(threading.Event())
    assert missing(served) == 1
    assert "requests are routed as configured" in following.problem
    assert "monitor.store.route_wait_s" in caplog.text
    following.look()
    assert following.problem
    write(path)
    following.look()
    assert following.problem == ""
    assert changes == [""]


def test_who_is_asked_to_end_waits_no_longer(served, tmp_path):
    stop = threading.Event()
    stop.set()
    follower(served, tmp_path / "none.json", LONG_S).await_table(stop)
    assert missing(served) == 0


@pytest.mark.timeout(600)
def test_a_gateway_in_a_container_of_its_own_waits_for_the_monitor_beside_it(tmp_path):
    [address] = free_addresses(1)
    tree: dict[str, Any] = {
        "models": [
            {
                "name": "m", "default_version": "2",
                "variants": [
                    on_disk("v", onnx_times(tmp_path, factor, f"{version}.onnx"), version=version)
                    for version, factor in (("1", 2.0), ("2", 3.0))
                ],
            }
        ],
        "gateway": {
            "grpc": {"address": address}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {
            "enabled": True, "state_dir": str(tmp_path / "state"),
            "store": {"url": "postgresql://nobody@127.0.0.1:1/none", "route_wait_s": LONG_S},
        },
    }  # fmt: skip
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    server = launch(path, "gateway")
    try:
        until(lambda: "waits for the replicas' route table" in server.text, "it waits")
        following = tmp_path / "state" / route_table.NAME
        assert not listens(address)
        write(following, m=Route(5, {"1": 1.0}, "rollback", "it was worse", 1, {}, shared=True))
        await_ready(server)
        with Client(address) as client:
            answers = {client.call("ModelInfer", request("m", 1)).model_version for _ in range(20)}
        assert answers == {"1"}
    finally:
        server.kill()


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
