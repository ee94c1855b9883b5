"""Routes and labels over three replicas: real `sidecar serve`s on one PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import monitor_pb2 as mpb
from tests.cli.conftest import sidecar as command
from tests.e2e.support import LOCAL, Server, await_ready, launch, until
from tests.e2e.test_monitor import MONITOR, calling, is_connected, monitor_of, perturbed
from tests.support import digits
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer

# On a busy machine each of them takes its time.
pytestmark = pytest.mark.timeout(1200)

TOKEN = "of-the-operator"
WITHIN_S = 300


class Fleet:
    """Replicas in folders of their own, as pods have them."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url
        self.good = digits.model(folder)
        self.bad = perturbed(folder, self.good)
        self.servers: dict[str, Server] = {}
        self.monitors: dict[str, str] = {}

    def config(self, name: str, *, grpc_address: str = LOCAL, wait_s: float = 900.0) -> Path:
        def variant(version: str, role: str, path: Path) -> dict[str, Any]:
            runtime = {"kind": "onnxruntime", "path": str(path)}
            return {"version": version, "name": "onnx", "roles": [role], "runtime": runtime}

        tree = {
            "models": [
                {
                    "name": "digits", "labels": {}, "default_version": "2",
                    "validation": {"outputs": {"probabilities": {"kind": "class_scores"}}},
                    "variants": [
                        variant("1", "previous", self.good), variant("2", "serving", self.bad),
                    ],
                }
            ],
            "gateway": {
                "grpc": {"address": grpc_address}, "http": None, "admin": {"token": TOKEN},
                "drain": {"delay_s": 0, "timeout_s": 2},
            },
            "monitor": {
                "grpc": LOCAL, "flush_s": 0.2, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
                "store": {
                    "url": self._url, "sync_s": 0.2, "timeout_s": 2, "route_wait_s": wait_s,
                },
            },
        }  # fmt: skip
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        path = folder / "sidecar.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def launch(self, name: str, **settings: Any) -> Server:
        server = self.servers[name] = launch(self.config(name, **settings))
        return server

    def ready(self, name: str) -> Server:
        server = await_ready(self.servers[name])
        self.monitors[name] = monitor_of(server)
        is_connected(server)
        return server

    def kill(self, name: str) -> None:
        self.servers.pop(name).kill()
        self.monitors.pop(name)

    def route(self, name: str) -> dict[str, Any]:
        done = command("route", self.monitors[name], "digits", "--json", "--timeout", "60")
        assert done.returncode == 0, done.stderr
        [found] = json.loads(done.stdout)
        return found

    def set(self, name: str, *shares: str, **options: Any) -> Any:
        more = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        return command(
            "route", "set", self.monitors[name], "digits", *shares, *more, "--token", TOKEN,
            "--timeout", "60",
        )  # fmt: skip

    def followed(self, revision: int) -> list[dict[str, Any]]:
        """Wait until every replica says that all of them follow it."""
        count = len(self.monitors)

        def look() -> Any:
            found = [self.route(name) for name in self.monitors]
            wanted = (revision, count, count, count, count)
            said = [
                (one["revision"], one["workers"], one["applied"], one["replicas"],
                 one["replicas_applied"])
                for one in found
            ]  # fmt: skip
            return found if all(one == wanted for one in said) else None

        return until(look, f"{count} replicas follow {revision}", within_s=WITHIN_S)


@pytest.fixture
def fleet(tmp_path: Path, database_url: str) -> Iterator[Fleet]:
    made = Fleet(tmp_path, database_url)
    try:
        yield made
    finally:
        for server in made.servers.values():
            with contextlib.suppress(AssertionError):
                server.kill()


def asking(address: str) -> Callable[..., Any]:
    channel = grpc.insecure_channel(address)
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )

    def ask(image: np.ndarray, request_id: str = "", **options: Any) -> Any:
        request = pb.ModelInferRequest(model_name="digits")
        request.inputs.add(name="image", datatype="FP32").shape.extend(image.shape)
        request.raw_input_contents.append(image.tobytes())
        metadata = [("x-request-id", request_id)] if request_id else []
        return call(request, metadata=metadata, **{"timeout": 60, **options})

    return ask


def versions(server: Server, count: int = 30) -> Counter[str]:
    ask = asking(server.addresses["grpc"])
    return Counter(ask(digits.images()[at : at + 1]).model_version for at in range(count))


class FromTheStart(threading.Thread):
    """A client that asks a pod from before it is there: which versions answered."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.answers: Counter[str] = Counter()
        self.first = ""
        self._ask = asking(address)
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(grpc.RpcError):
                version = self._ask(digits.images()[:1], timeout=5).model_version
                self.first = self.first or version
                self.answers[version] += 1
            self._end.wait(0.005)

    def stop(self) -> None:
        self._end.set()
        self.join(30)


def evidence(monitor: str, metric: str) -> Counter[str]:
    """Cells of a metric over all keys and incarnations."""
    with calling(monitor) as channel:
        call = channel.unary_unary(
            f"/{MONITOR}/GetEvidence",
            request_serializer=mpb.GetEvidenceRequest.SerializeToString,
            response_deserializer=mpb.GetEvidenceResponse.FromString,
        )
        rows = call(mpb.GetEvidenceRequest(model="digits", page_size=10_000), timeout=30).rows
    total: Counter[str] = Counter()
    for row in rows:
        if row.key.metric == metric:
            total.update({name: round(count) for name, count in row.cells.items()})
    return total


def test_three_replicas_one_route(fleet: Fleet, postgres_server: PostgresServer):
    for name in "abc":
        fleet.launch(name)
    for name in "abc":
        fleet.ready(name)
    fleet.followed(0)
    assert versions(fleet.servers["b"]) == {"2": 30}

    with ThreadPoolExecutor(2) as pool:  # two operators at once
        done = list(pool.map(lambda name: fleet.set(name, "1=1", expect=0, reason=name), "ab"))
    codes = {name: one.returncode for name, one in zip("ab", done, strict=True)}
    assert sorted(codes.values()) == [0, 1]
    [winner] = (name for name, code in codes.items() if code == 0)
    [refused] = (one for one in done if one.returncode)
    assert "ABORTED" in refused.stderr + refused.stdout
    assert "at revision 1 by now, not at 0" in " ".join((refused.stderr + refused.stdout).split())
    assert {one["reason"] for one in fleet.followed(1)} == {winner}
    for server in fleet.servers.values():
        assert versions(server) == {"1": 30}
    shown = command("route", fleet.monitors["c"], "--timeout", "60").stdout
    assert "3 of 3 workers, 3 of 3 replicas" in " ".join(shown.split())

    # Whoever has set it dies: the others go on by it, and say so of themselves.
    fleet.kill(winner)
    fleet.followed(1)
    left = sorted(fleet.servers)
    assert versions(fleet.servers[left[0]]) == {"1": 30}

    # A fresh pod, whose configuration says version 2: not one request gets it.
    port = free_port()
    client = FromTheStart(f"127.0.0.1:{port}")
    client.start()
    fleet.launch("d", grpc_address=f"127.0.0.1:{port}")
    fleet.ready("d")
    until(lambda: client.answers.total() > 50, "it answers")
    client.stop()
    assert set(client.answers) == {"1"}
    fleet.followed(1)

    # Without the database: the old pod goes by its own table, a fresh one waits, bounded, and says.
    postgres_server.stop()
    try:
        refused = fleet.set("d", "2=1")
        assert refused.returncode == 1
        said = " ".join((refused.stderr + refused.stdout).split())
        assert "UNAVAILABLE" in said
        assert "gateways go on as they did" in said
        fleet.kill("d")
        client = FromTheStart(f"127.0.0.1:{port}")
        client.start()
        fleet.launch("d", grpc_address=f"127.0.0.1:{port}")
        fleet.launch("e", wait_s=1.0)
        fleet.ready("d")
        fleet.ready("e")
        until(lambda: client.answers.total() > 50, "it answers")
        client.stop()
        assert set(client.answers) == {"1"}
        assert versions(fleet.servers["e"]) == {"2": 30}
        assert "route table did not come in time (monitor.store.route_wait_s)" in (
            fleet.servers["e"].text
        )
        until(lambda: "did not come in time" in fleet.route("e")["problem"], "it is shown")
        silent = "nothing was heard of the replicas' database"
        until(lambda: silent in fleet.route("d")["problem"], "it is shown")
    finally:
        postgres_server.start()
    fleet.followed(1)
    assert versions(fleet.servers["e"]) == {"1": 30}
    assert {one["problem"] for one in fleet.followed(1)} == {""}
    assert fleet.set("e", "1=1", "2=1", expect=1).returncode == 0
    fleet.followed(2)
    for server in fleet.servers.values():
        server.signal()
    for server in fleet.servers.values():
        assert server.wait() == 0


def test_a_monitor_that_is_killed_and_comes_back_follows_what_was_set_meanwhile(fleet: Fleet):
    for name in "ab":
        fleet.launch(name)
    for name in "ab":
        fleet.ready(name)
    pid = fleet.servers["b"]
    [monitor] = [
        int(text.rpartition("pid ")[2])
        for text in pid.text.splitlines()
        if text.startswith("monitor (gRPC)")
    ]
    os.kill(monitor, signal.SIGKILL)
    assert fleet.set("a", "1=1").returncode == 0
    fleet.monitors["b"] = monitor_of(fleet.servers["b"], after=1)
    fleet.followed(1)
    assert versions(fleet.servers["b"]) == {"1": 30}


def test_labels_sent_to_one_replica_count_where_their_answers_are(fleet: Fleet, tmp_path: Path):
    for name in "abc":
        fleet.launch(name)
    for name in "abc":
        fleet.ready(name)
    fleet.followed(0)
    truth = digits.labels()
    names = []
    table: dict[str, list[Any]] = {"request_id": [], "label": []}
    for at in range(150):
        server = fleet.servers["abc"[at % 3]]
        if at < 3:
            server.ask = asking(server.addresses["grpc"])  # type: ignore[attr-defined]
        server.ask(digits.images()[at : at + 1], f"r{at}")  # type: ignore[attr-defined]
        names.append(f"r{at}")
        table["request_id"].append(f"r{at}")
        table["label"].append(int(truth[at]))
    file = tmp_path / "labels.parquet"
    pq.write_table(pa.table(table), file)

    def sent(name: str) -> dict[str, Any]:
        done = command(
            "labels", fleet.monitors[name], str(file), "--model", "digits", "--token", TOKEN,
            "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    counts = sent("a")
    assert counts["matched"] + counts["early"] == 150
    assert counts["early"] >= 100

    def all_count() -> Any:
        found = [evidence(monitor, "served_accuracy") for monitor in fleet.monitors.values()]
        return found if all(one["n"] == 150 for one in found) else None

    before = until(all_count, "all count, at each of them", within_s=WITHIN_S)
    assert before[0] == before[1] == before[2]
    assert 0 < before[0]["k"] < 150
    for name in "bca":
        sent(name)
    accuracy = evidence(fleet.monitors["b"], "accuracy")
    assert accuracy.total() == 150
    until(lambda: on_offer(fleet) == 0, "what was offered again is gone", within_s=WITHIN_S)
    assert [evidence(monitor, "served_accuracy") for monitor in fleet.monitors.values()] == before
    assert evidence(fleet.monitors["b"], "accuracy") == accuracy


def on_offer(fleet: Fleet) -> int:
    import psycopg

    with psycopg.connect(fleet._url) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM labels_offered").fetchall()
    return int(count)
