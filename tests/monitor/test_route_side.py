"""Routes, from the monitor to a worker and back, over a real table and a real channel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar import route_table
from sidecar.clock import SystemClock
from sidecar.errors import InvalidRequestError, NotFoundError, UnavailableError
from sidecar.gateway.aside import Aside
from sidecar.gateway.route_follower import RouteFollower
from sidecar.gateway.tap import Tap
from sidecar.monitor import calls_route
from sidecar.monitor.channel import ExchangeListener
from sidecar.monitor.channel_frames import PROBED, ROUTED
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.compare_versions import Comparer
from sidecar.monitor.route_side import RouteSide
from sidecar.monitor.routed_frames import WIDTH
from sidecar.monitor.routing import RouteConflictError, RouteView
from sidecar.monitor.rows import EvidenceKey, EvidenceRow
from sidecar.monitor.service import MonitorServer
from sidecar.monitor.worker_routes import WorkerRoutes
from tests.e2e.support import fails
from tests.gateway.served import (
    FunctionRuntime,
    Served,
    configure,
    make_models,
    model,
    request,
    serving,
    variant,
)
from tests.monitor.listening import until
from tests.monitor.views import FakeView

ROW = np.ones((1, 3), np.float32)
PROBE_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


class Sides:
    """A gateway and the monitor's side of routes, with the table and the channel between them."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.folder = served, folder
        self.table = folder / route_table.NAME
        self.config = served.gateway.config
        self.workers = WorkerRoutes()
        self.evidence: list[EvidenceRow] = []
        self.routes = RouteSide(self.config, self.table, self.workers, SystemClock(), self._since)
        self.comparer = Comparer(
            self.config, self.workers, self.routes.began, lambda _: self.evidence
        )

    def _since(self, name: str) -> dict[str, Any]:
        return self.comparer.since(name)

    @contextmanager
    def listening(self) -> Iterator[ExchangeListener]:
        listener = ExchangeListener(
            self.folder / "tap.sock", lambda _: None, max_exchange_bytes=2**20, rate=0,
            routes=self.workers,
        )  # fmt: skip
        listener.start()
        try:
            yield listener
        finally:
            listener.close()

    @contextmanager
    def connected(self, worker: int = 0) -> Iterator[None]:
        gateway = self.served.gateway
        follower = RouteFollower(self.table, gateway.registry, gateway.page)
        follower.look()
        tap = Tap(
            self.folder / "tap.sock", self.config.monitor, gateway.page, gateway.clock, worker
        )
        tap.aside = Aside(gateway.registry, gateway.page, follower)
        follower.on_change = tap.aside.changed
        tap.start()
        follower.start()
        try:
            yield
        finally:
            follower.stop()
            tap.close()

    def settled(self) -> RouteView:
        """Wait until the worker follows what is set."""

        def look() -> RouteView | None:
            view = self.routes.route("m")
            return view if view.workers == view.applied == 1 else None

        return until(look, "the worker follows")

    def ask(self, count: int, version: str = "") -> None:
        for _ in range(count):
            self.served.infer(request("m", {"x": ROW}, model_version=version))


@pytest.fixture
def sides(folder: Path, tmp_path: Path) -> Iterator[Sides]:
    tree = model(
        "m", variant("any", "1"), variant("any", "2"), variant("any", "3", "candidate"),
        route={"shares": {"1": 0.5, "2": 0.5}},
    )  # fmt: skip
    with serving(configure(folder, tree)) as served:
        made = Sides(served, tmp_path)
        with made.listening(), made.connected():
            made.settled()
            yield made


def test_what_is_set_is_followed_counted_and_shown(sides):
    view = sides.settled()
    assert (view.revision, view.shares, view.by) == (0, {"1": 0.5, "2": 0.5}, "config")
    assert (view.candidates, view.versions, view.problem) == (["3"], ["1", "2", "3"], "")
    after = sides.routes.set("m", {"3": 1, "1": 3}, by="operator", reason=" why ", expected=0)
    assert (after.revision, after.shares) == (1, {"1": 0.75, "3": 0.25})
    view = sides.settled()
    assert (view.revision, view.by, view.reason, view.candidates) == (1, "operator", "why", [])
    assert sides.routes.shares("m") == ({"1": 0.75, "3": 0.25}, True)
    sides.ask(40)
    sides.ask(3, "2")
    until(lambda: sum(sides.routes.observed("m").values()) == 43, "all are counted")
    assert sides.routes.observed("m")["2"] == 3
    assert [one.model for one in sides.routes.routes()] == ["m"]


def test_what_makes_no_sense_is_refused_and_changes_nothing(sides):
    sides.routes.set("m", {"1": 1}, by="operator", reason="")
    for shares, error in (
        ({"7": 1.0}, NotFoundError), ({}, InvalidRequestError), ({"1": 0.0}, InvalidRequestError),
        ({"1": -1.0, "2": 2.0}, InvalidRequestError), ({"1": float("nan")}, InvalidRequestError),
        ({"1": float("inf")}, InvalidRequestError),
    ):  # fmt: skip
        with pytest.raises(error):
            sides.routes.set("m", shares, by="operator", reason="")
    with pytest.raises(NotFoundError, match="there is m"):
        sides.routes.set("n", {"1": 1.0}, by="operator", reason="")
    with pytest.raises(RouteConflictError, match="at revision 1 by now, not at 0"):
        sides.routes.set("m", {"2": 1.0}, by="rollback", reason="", expected=0)
    assert sides.routes.route("m").shares == {"1": 1.0}


def test_of_many_who_change_it_at_once_one_wins(sides):
    def change(number: int) -> int:
        side = RouteSide(sides.config, sides.table, WorkerRoutes(), SystemClock())
        try:
            side.set("m", {"1": 1, "2": number}, by="test", reason=str(number), expected=0)
        except RouteConflictError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(change, range(1, 17))) == 1
    assert sides.settled().revision == 1


def test_a_damaged_table_changes_nothing_until_it_is_begun_anew(sides):
    sides.routes.set("m", {"2": 1}, by="rollback", reason="it was worse")
    sides.settled()
    sides.table.write_bytes(b'{"format": 1')
    said = until(lambda: sides.routes.route("m").problem.count("route table") > 1, "it is said")
    assert said
    view = sides.routes.route("m")
    assert (view.revision, view.shares) == (1, {"2": 1.0})  # as workers go on to route
    assert sides.served.gateway.page.server_counters()["route_damaged"] == 1
    after = sides.routes.set("m", {"1": 1}, by="operator", reason="", expected=1)
    assert after.revision == 2
    assert sides.settled().problem == ""
    damaged = sides.table.with_name("routes.json.damaged")
    assert damaged.read_bytes() == b'{"format": 1'


def test_a_table_that_cannot_be_written_leaves_the_old_one(sides):
    sides.routes.set("m", {"2": 1}, by="operator", reason="")
    before = sides.table.read_bytes()
    sides.table.with_name("routes.json.new").mkdir()  # of a full disk the test cannot be sure
    with pytest.raises(UnavailableError, match="cannot be written"):
        sides.routes.set("m", {"1": 1}, by="operator", reason="")
    assert sides.table.read_bytes() == before
    assert sides.settled().shares == {"2": 1.0}


CHANGES = """
import sys
from pathlib import Path
from sidecar.monitor.route_book import RouteBook
from sidecar.route_table import Route
book = RouteBook(Path(sys.argv[1]))
number = 0
print("begun", flush=True)
while True:
    number += 1
    with book.changing() as table:
        table["m"] = Route(number, {"1": 0.5, "2": 0.5}, "x" * 1500, "", 0)
"""


def test_whoever_is_killed_while_writing_leaves_a_whole_table(tmp_path):
    path = tmp_path / route_table.NAME
    last = 0
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", CHANGES, str(path)], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert writer.stdout is not None
        writer.stdout.readline()
        until(path.exists, "it has begun")
        until(lambda last=last: read(path) != last, "it goes on")
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        last = read(path)
        assert last > 0


def read(path: Path) -> int:
    data = route_table.read(path)
    assert data is not None
    return route_table.parse(data)["m"].revision


# --- probes ---------------------------------------------------------------------------------------


def test_a_probe_runs_the_copies_that_would_serve(sides):
    found = sides.routes.probe("m", "3", PROBE_S)
    assert found.ok
    assert "m:3 answers at 1 worker" in found.text
    missing = sides.routes.probe("m", "8", PROBE_S)
    assert not missing.ok
    assert "no copy of version '8'; of these there is one: 1, 2, 3" in missing.text
    with pytest.raises(NotFoundError):
        sides.routes.probe("n", "1", PROBE_S)


def test_a_copy_that_fails_is_no_target(sides):
    def fail(_: Any) -> Any:
        text = "a secret of the model's"
        raise RuntimeError(text)

    put(sides, "3", fail)
    found = sides.routes.probe("m", "3", PROBE_S)
    assert not found.ok
    assert "worker 0" in found.text


def test_a_copy_that_hangs_holds_up_nobody_else(sides):
    let_go = threading.Event()

    def hang(inputs: Any) -> Any:
        let_go.wait()
        return [inputs["x"]]

    put(sides, "3", hang)
    try:
        found = sides.routes.probe("m", "3", 0.3)
        assert not found.ok
        assert "no answer within 0.3 s" in found.text
        again = sides.routes.probe("m", "3", PROBE_S)
        assert "the probe before has been running for" in again.text
        assert sides.routes.probe("m", "1", PROBE_S).ok
        sides.routes.set("m", {"1": 1}, by="operator", reason="")
        assert sides.settled().revision == 1
        sides.ask(3)
    finally:
        let_go.set()
    until(lambda: sides.routes.probe("m", "3", PROBE_S).ok, "it is over")


def test_without_a_worker_nothing_was_probed_and_nobody_follows(folder, tmp_path):
    with serving(configure(folder, model("m", variant("any", "1"), variant("any", "2")))) as served:
        sides = Sides(served, tmp_path)
        assert sides.routes.probe("m", "1", PROBE_S).text == "no gateway worker is connected"
        view = sides.routes.set("m", {"1": 1}, by="operator", reason="")
        assert (view.workers, view.applied) == (0, 0)
        with sides.listening():
            with sides.connected():
                assert sides.settled().shares == {"1": 1.0}
                sides.ask(5)
                until(lambda: sides.routes.observed("m")["1"] == 5, "they are counted")
            until(lambda: sides.routes.route("m").workers == 0, "it has gone")
            assert sides.routes.observed("m")["1"] == 5  # what it answered stays answered


def put(sides: Sides, version: str, function: Any) -> None:
    copy = sides.served.gateway.registry.entry("m").held[version]
    copy.runtime = FunctionRuntime(function, copy.runtime.signature)


# --- versions compared, and the service -----------------------------------------------------------


def labelled(version: str, k: float, n: float) -> EvidenceRow:
    key = EvidenceKey("m", f"m:{version}/onnx", "", "y", "served_accuracy")
    return EvidenceRow(key, "life", {"k": k, "n": n})


def test_only_what_came_since_the_shares_were_set_is_compared(sides):
    sides.ask(30, "1")
    sides.ask(30, "2")
    until(lambda: sum(sides.routes.observed("m").values()) == 60, "all are counted")
    sides.evidence += [labelled("1", 500.0, 1000.0), labelled("2", 10.0, 1000.0)]
    view = sides.comparer.compare("m", "", "", 0)
    assert [one.metric for one in view.metrics] == [
        "error", "latency_p50", "latency_p99", "accuracy",
    ]  # fmt: skip
    assert [one.first.n for one in view.metrics] == [30, 30, 30, 1000]
    assert view.metrics[3].difference_upper < 0
    assert "since the gateway began: 30 of 1 and 30 of 2" in view.text
    sides.routes.set("m", {"1": 1, "2": 1}, by="operator", reason="")
    sides.evidence[:] = [labelled("1", 590.0, 1100.0), labelled("2", 100.0, 1100.0)]
    sides.ask(7, "1")
    until(lambda: sides.routes.observed("m")["1"] == 37, "all are counted")
    view = sides.comparer.compare("m", "1", "2", 0.1)
    error, accuracy = view.metrics[0], view.metrics[3]
    assert (error.first.n, error.second.n) == (7, 0)
    assert np.isnan(error.second.value)
    assert (accuracy.first.value, accuracy.second.value) == (0.9, 0.9)
    assert accuracy.difference_lower < 0 < accuracy.difference_upper


def test_failed_and_fallen_back_requests_are_errors_and_wrong_ones_are_not(sides):
    def fail(_: Any) -> Any:
        text = "on purpose"
        raise RuntimeError(text)

    put(sides, "2", fail)
    sides.ask(200, "1")
    for _ in range(200):
        with fails(grpc.StatusCode.INTERNAL):
            sides.ask(1, "2")
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        sides.served.infer(request("m", {"z": ROW}, model_version="1"))
    until(lambda: sides.workers.counts("m")["2"].failed == 200, "all are counted")
    error = sides.comparer.compare("m", "1", "2", 0).metrics[0]
    assert (error.first.n, error.first.value, error.second.value) == (200, 0.0, 1.0)
    assert error.difference_lower > 0.5
    assert "more by at least" in error.text


def test_two_versions_are_needed(sides):
    with pytest.raises(NotFoundError, match="no version '9'"):
        sides.comparer.compare("m", "9", "1", 0)
    with pytest.raises(InvalidRequestError, match="with itself"):
        sides.comparer.compare("m", "1", "1", 0)
    sides.routes.set("m", {"1": 1}, by="operator", reason="")
    with pytest.raises(InvalidRequestError, match="1 versions of 'm' have a share"):
        sides.comparer.compare("m", "", "", 0)
    with pytest.raises(NotFoundError, match="no model 'n'"):
        sides.comparer.compare("n", "", "", 0)


def test_the_service_takes_changes_from_who_has_the_token(sides):
    methods = calls_route.methods(sides.routes, sides.comparer.compare)
    server = MonitorServer(FakeView(), methods=methods, admin_token="secret")
    try:
        with MonitorClient(server.start("127.0.0.1:0"), timeout_s=60) as client:
            [view] = client.routes()
            assert view.shares == {"1": 0.5, "2": 0.5}
            for token, code in (("", "UNAUTHENTICATED"), ("wrong", "PERMISSION_DENIED")):
                with pytest.raises(MonitorCallError) as refused:
                    client.set_route("m", {"1": 1}, token=token)
                assert refused.value.code == code
            after = client.set_route("m", {"1": 1}, reason="r", expected=0, token="secret")
            assert (after.revision, after.by) == (1, "operator")
            with pytest.raises(MonitorCallError) as late:
                client.set_route("m", {"2": 1}, expected=0, token="secret")
            assert late.value.code == "ABORTED"
            assert len(client.compare("m", "1", "2").metrics) == 3
            assert client.judged("m") is None  # nobody brings that call here
            with pytest.raises(MonitorCallError) as unknown:
                client.routes("n")
            assert unknown.value.code == "NOT_FOUND"
    finally:
        server.stop(0)


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"page": 1, "problem": "", "models": []}, {"page": "1", "problem": "", "models": {}},
        {"page": 1, "problem": "", "models": {"m": {}}},
        {"page": 1, "problem": "", "models": {"m": {
            "revision": 1, "shares": {}, "there": [], "note": "", "counts": {"1": [1]}}}},
        {"page": 1, "problem": "", "models": {"m": {
            "revision": 1, "shares": {}, "there": [], "note": "", "counts": {"1": [-1] * WIDTH}}}},
        {"page": 1, "problem": "", "models": {"m": {
            "revision": 1, "shares": {"1": "x"}, "there": [], "note": "", "counts": {}}}},
    ],
)  # fmt: skip
def test_what_a_worker_cannot_have_said_is_refused(fields):
    for kind in (ROUTED, PROBED):
        with pytest.raises(ValueError, match="does not"):
            WorkerRoutes().heard(None, kind, fields)
