"""Versions that share the traffic, as operators and clients meet them: real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

import grpc
import httpx
import numpy as np
import psutil
import pytest
import yaml

from sidecar import route_table
from tests.e2e.support import (
    LOCAL,
    Client,
    Server,
    await_ready,
    fails,
    launch,
    one_channel_a_worker,
    onnx_times,
    request,
    running,
    until,
    variant,
)

pytestmark = pytest.mark.timeout(900)

#: Version → what it multiplies by: who answered can be seen from the answer.
FACTORS = {"1": 2.0, "2": 3.0, "3": 5.0}
TOKEN = "of-the-operator"


def configure(folder: Path, *, workers: int = 1, command: str = "serve", **route: Any) -> Path:
    for version, factor in FACTORS.items():
        onnx_times(folder, factor, f"{version}.onnx")
    roles = {"1": ["serving"], "2": ["serving"], "3": ["candidate"]}
    tree = {
        "models": [
            {
                "name": "m",
                "variants": [
                    variant("v", folder / f"{version}.onnx", version=version, roles=roles[version])
                    for version in FACTORS
                ],
                "route": {"shares": {"1": 1}, "sticky": "x-user", **route},
            }
        ],
        "gateway": {
            "grpc": {"address": LOCAL, "max_connection_age_s": 3600}, "http": {"address": LOCAL},
            "drain": {"delay_s": 0, "timeout_s": 2}, "workers": workers,
            "admin": {"token": TOKEN},
        },
        "monitor": {"grpc": LOCAL, "mirror": {"sample_rate": 0.0}},
    }  # fmt: skip
    path = folder / f"{command}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def sidecar(*arguments: str, code: int = 0, token: str = TOKEN) -> str:
    """Run a command; its output, and what it said of errors."""
    environment = {**os.environ, "SIDECAR_ADMIN_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments, "--timeout", "60"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def monitor_of(server: Server) -> str:
    """The monitor's address, once its listener for workers is there."""

    def said() -> Any:
        assert "Traceback" not in server.text, server.text
        return re.findall(r"^monitor \(gRPC\): ([\d.:]+)", server.text, re.MULTILINE)

    return until(said, "the monitor is there", within_s=300)[-1]


def route(monitor: str) -> dict[str, Any]:
    [found] = json.loads(sidecar("route", monitor, "m", "--json"))
    return found


def followed(monitor: str, revision: int, workers: int) -> dict[str, Any]:
    """Wait until so many workers follow a revision; the route."""

    def look() -> Any:
        found = route(monitor)
        at_it = (found["revision"], found["applied"], found["workers"])
        return found if at_it == (revision, workers, workers) else None

    return until(look, f"{workers} workers follow revision {revision}", within_s=300)


def version_of(answer: Any) -> str:
    """Who answered 1: by its value, which must be that of the version that it names."""
    [value] = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert FACTORS[answer.model_version] == value
    return answer.model_version


def ask(client: Client, user: str = "", version: str = "") -> str:
    metadata = (("x-user", user),) if user else ()
    asked = request("m", 1, version=version)
    return version_of(client.call("ModelInfer", asked, metadata=metadata))


def ask_http(address: str, user: str) -> str:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    answer = httpx.post(
        f"http://{address}/v2/models/m/infer", json=body, headers={"X-User": user}, timeout=60
    ).json()
    assert FACTORS[answer["model_version"]] == answer["outputs"][0]["data"][0]
    return answer["model_version"]


class Load:
    """Clients that never stop asking; what they were answered, and what failed."""

    def __init__(self, address: str, clients: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._address = address
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with Client(self._address) as client:
            while not self._end.is_set():
                try:
                    answered = ask(client)
                except (grpc.RpcError, AssertionError, KeyError) as error:
                    with self._lock:
                        self.errors.append(repr(error))
                    continue
                with self._lock:
                    self.answers[answered] += 1

    def more(self, count: int = 200) -> Counter[str]:
        """What the next so many requests are answered by."""
        before = Counter(self.answers)
        until(lambda: self.errors or self.answers.total() >= before.total() + count, "it goes on")
        return self.answers - before


def put(table: Path, content: bytes) -> None:
    """As a whole: an empty file in between would be one more that cannot be followed."""
    beside = table.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(table)


def test_a_route_changes_under_load_without_a_failed_request_and_is_kept(tmp_path):
    config = configure(tmp_path, workers=2)
    with running(config) as server:
        monitor = monitor_of(server)
        assert followed(monitor, 0, 2)["shares"] == {"1": 1.0}
        with Load(server.addresses["grpc"]) as load:
            assert set(load.more()) == {"1"}
            sidecar("route", "set", monitor, "m", "1=3", "2=1", "--reason", "a first look")
            found = followed(monitor, 1, 2)
            assert found["shares"] == {"1": 0.75, "2": 0.25}
            assert (found["by"], found["reason"]) == ("operator", "a first look")
            seen = load.more(800)
            # Binomial: 800 at 0.25 is 200 ± 12; seven of those to each side.
            assert 115 < seen["2"] < 285
            assert seen["1"] + seen["2"] == seen.total()
            sidecar("route", "set", monitor, "m", "2=1")
            followed(monitor, 2, 2)
            assert set(load.more()) == {"2"}
            # A worker that is killed, and one whose monitor is, begin where they were. (Requests on
            # the connections of a worker that is killed fail: so the load ends before.)
            assert load.errors == []
        psutil.Process(server.pids[0]).kill()
        until(lambda: followed(monitor, 2, 2), "it was started again", within_s=300)
        with Client(server.addresses["grpc"]) as client:
            assert {ask(client) for _ in range(20)} == {"2"}
        stopped = sidecar("route", "set", monitor, "m", "1=1", "--expect", "1", code=1)
        assert "ABORTED" in stopped
        assert "at revision 2 by now, not at 1" in stopped
        assert "PERMISSION_DENIED" in sidecar(
            "route", "set", monitor, "m", "1=1", code=1, token="another"
        )
        assert "no version '7'" in sidecar("route", "set", monitor, "m", "7=1", code=1)
        server.signal()
        assert server.wait() == 0
    # Without a monitor too: nobody is there who could say otherwise.
    tree = yaml.safe_load(config.read_text())
    tree["monitor"]["enabled"] = False
    config.write_text(yaml.safe_dump(tree))
    with running(config, "gateway") as server, Client(server.addresses["grpc"]) as client:
        assert re.search(r"m +2/v \(default\)", server.text)
        assert {ask(client) for _ in range(20)} == {"2"}
        assert client.call("ModelMetadata", {"name": "m"}).versions == ["1", "2"]
        assert ask(client, version="1") == "1"
        # The table itself is enough: whoever writes it is followed, and garbage is not.
        table = tmp_path / "sidecar-state" / route_table.NAME
        good = table.read_bytes()
        put(table, good[: len(good) // 2])
        until(lambda: "cannot be followed" in server.text, "it is said")
        assert {ask(client) for _ in range(20)} == {"2"}
        assert server.text.count("cannot be followed") == 1
        put(table, good.replace(b'"2": 1.0', b'"1": 1.0'))
        until(lambda: ask(client) == "1", "the new table is followed")


def test_workers_transports_and_restarts_agree_on_who_a_sticky_user_goes_to(tmp_path):
    config = configure(tmp_path, workers=2, shares={"1": 0.5, "2": 0.5})
    users = [f"user-{number}" for number in range(60)]
    with running(config) as server:
        monitor = monitor_of(server)
        with one_channel_a_worker(server.addresses["grpc"], 2, "m", 1) as clients:
            first, second = ({user: ask(client, user) for user in users} for client in clients)
            assert first == second
            assert 10 < Counter(first.values())["1"] < 50
            assert {user: ask_http(server.addresses["http"], user) for user in users} == first

            def stream(client: Client, user: str) -> set[str]:
                asked = iter([request("m", 1)] * 3)
                elements = client.stream(asked, metadata=(("x-user", user),))
                return {version_of(element.infer_response) for element in elements}

            assert all(stream(clients[0], user) == {first[user]} for user in users[:10])
            sidecar("route", "set", monitor, "m", "1=0.4", "2=0.6")
            followed(monitor, 1, 2)
            after = {user: ask(clients[0], user) for user in users}
            # A tenth of the points moves, and only from the one to the other.
            moved = {user for user in users if after[user] != first[user]}
            assert all(first[user] == "1" for user in moved)
            assert len(moved) < 20
        server.signal()
        assert server.wait() == 0
    with running(config) as server, Client(server.addresses["grpc"]) as client:
        assert {user: ask(client, user) for user in users} == after


def test_a_candidate_answers_nobody_until_it_is_promoted(tmp_path):
    with running(configure(tmp_path, workers=2)) as server:
        monitor = monitor_of(server)
        assert re.search(r"m +3/v +candidate", server.text)
        found = followed(monitor, 0, 2)
        assert (found["candidates"], found["versions"]) == (["3"], ["1", "2", "3"])
        with one_channel_a_worker(server.addresses["grpc"], 2, "m", 1) as clients:
            for client in clients:
                with fails(grpc.StatusCode.NOT_FOUND) as refused:
                    ask(client, version="3")
                said = refused[0].details()
                assert "is a candidate" in said
                assert "sidecar route promote MONITOR m 3" in said
                assert {ask(client) for _ in range(10)} == {"1"}
                assert client.call("ModelMetadata", {"name": "m"}).versions == ["1", "2"]
            with Load(server.addresses["grpc"]) as load:
                load.more(50)
                said = sidecar("route", "promote", monitor, "m", "3", code=1)
                assert "version 3 is not promoted: it is insufficient" in said  # as checked here
                said = sidecar("route", "promote", monitor, "m", "3", "--force")
                assert "3=1" in said
                followed(monitor, 1, 2)
                assert set(load.more(50)) == {"3"}
                assert load.errors == []
            for client in clients:
                assert ask(client, version="3") == "3"
                assert client.call("ModelMetadata", {"name": "m"}).versions == ["1", "2", "3"]
            assert "candidates" not in sidecar("route", monitor, "m")
            # Taken back, it waits again.
            sidecar("route", "set", monitor, "m", "1=1")
            followed(monitor, 2, 2)
            for client in clients:
                with fails(grpc.StatusCode.NOT_FOUND):
                    ask(client, version="3")


def test_a_gateway_and_a_monitor_of_their_own_and_what_is_killed_when(tmp_path):
    config = configure(tmp_path, shares={"1": 0.5, "2": 0.5})
    with running(config, "gateway") as gateway, Client(gateway.addresses["grpc"]) as client:
        watching = launch(config, "monitor")
        try:
            monitor = monitor_of(await_ready(watching))
            followed(monitor, 0, 1)
            for _ in range(200):
                ask(client)

            def answered() -> Any:
                view = json.loads(sidecar("compare", monitor, "m", "--json"))
                error = view["metrics"][0]
                seen = error["first"]["n"] + error["second"]["n"]
                return view if seen >= 200 else None

            view = until(answered, "the counts are there")
            assert [one["metric"] for one in view["metrics"]] == [
                "error", "latency_p50", "latency_p99",
            ]  # fmt: skip
            assert view["metrics"][0]["first"]["version"] == "1"
            assert "version 2" in sidecar("compare", monitor, "m", "1", "2")
            sidecar("route", "set", monitor, "m", "1=0.5", "2=0.5", "--reason", "from here on")
            watching.process.send_signal(signal.SIGKILL)
            watching.process.wait()
            watching.kill()
            until(lambda: ask(client) == "1", "without a monitor it goes on")
        finally:
            watching.kill()
        watching = launch(config, "monitor")
        try:
            monitor = monitor_of(await_ready(watching))
            assert followed(monitor, 1, 1)["reason"] == "from here on"
            view = json.loads(sidecar("compare", monitor, "m", "--json"))
            error = view["metrics"][0]
            # What came before the shares were set does not count, whoever was killed meanwhile.
            assert 1 <= error["first"]["n"] + error["second"]["n"] < 100
            assert "revision 1" in view["text"]
        finally:
            watching.kill()
