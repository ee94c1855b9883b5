"""What replicas tell one another of their workers: real gateways, and heartbeats handed on here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from sidecar.clock import SystemClock
from sidecar.errors import UnavailableError
from sidecar.monitor.compare_versions import Comparer
from sidecar.monitor.route_book import RouteBook
from sidecar.monitor.route_fleet import RouteFleet
from sidecar.monitor.route_replicas import MODELS_MAX, ReplicaRoute, RouteReplicas
from sidecar.monitor.worker_routes import WorkerRoutes
from tests.gateway.served import configure, make_models, model, serving, variant
from tests.monitor import making
from tests.monitor.listening import until
from tests.monitor.test_route_side import PROBE_S, Sides, put

SYNC_S = 0.1


class Pod(Sides):
    """A gateway and a monitor of a fleet."""

    def __init__(self, served: Any, folder: Path, name: str) -> None:
        super().__init__(served, folder)
        self.name = name
        self.replicas = RouteReplicas(
            name, {"m": True}, self.workers, self.routes.own, SystemClock(), SYNC_S
        )
        fleet = RouteFleet(self.table, ["m"], lambda: None, SystemClock(), 3600)
        self.routes.share(fleet, self.replicas, SYNC_S)
        self.comparer = Comparer(self.config, self.replicas, self.routes.began, lambda _: [])


class Fleet:
    """Hands each pod's heartbeat to the others, as JSON, as long as it is not cut off."""

    def __init__(self, pods: list[Pod]) -> None:
        self.pods = {f"{pod.name}-incarnation": pod for pod in pods}
        self.alive = set(self.pods)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def beat(self) -> None:
        told = {life: self.pods[life].replicas.tell() for life in sorted(self.alive)}
        for life in told:
            others = {key: json.loads(json.dumps(one)) for key, one in told.items() if key != life}
            self.pods[life].replicas.hear(others)

    def _run(self) -> None:
        while not self._end.wait(0.02):
            self.beat()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    make_models(made)
    return made


@pytest.fixture
def pods(folder: Path, tmp_path: Path) -> Iterator[list[Pod]]:
    tree = model(
        "m", variant("any", "1"), variant("any", "2"), route={"shares": {"1": 0.5, "2": 0.5}}
    )
    with ExitStack() as stack:
        made = []
        for name in "abc":
            served = stack.enter_context(serving(configure(folder, tree)))
            (tmp_path / name).mkdir()
            pod = Pod(served, tmp_path / name, name)
            stack.enter_context(pod.listening())
            stack.enter_context(pod.connected())
            made.append(pod)
        for pod in made:
            pod.settled()
        yield made


def test_the_view_is_of_all_replicas(pods):
    with Fleet(pods) as fleet:

        def whole() -> Any:
            view = pods[0].routes.route("m")
            return view if view.workers == 3 else None

        view = until(whole, "all are heard")
        assert (view.applied, view.replicas, view.replicas_applied) == (3, 3, 3)
        with RouteBook(pods[1].table).changing() as table:
            table["m"] = making_route(1, {"1": 1.0})
        until(lambda: pods[0].routes.route("m").replicas_applied == 2, "one is ahead")
        assert pods[0].routes.route("m").applied == 2
        (pods[2].table).write_bytes(b"{")
        problem = until(lambda: pods[0].routes.route("m").problem, "a problem elsewhere is said")
        assert "replica c (c-incarn): the route table" in problem
        fleet.alive.discard("c-incarnation")
        until(lambda: pods[0].routes.route("m").replicas == 2, "it is gone")
        assert pods[0].routes.route("m").problem == ""


def making_route(revision: int, shares: dict[str, float]) -> Any:
    from sidecar.route_table import Route

    return Route(revision, shares, "operator", "", 1, {}, shared=True)


def test_a_probe_asks_every_replica(pods):
    with Fleet(pods):
        until(lambda: pods[0].routes.route("m").workers == 3, "all are heard")
        found = pods[0].routes.probe("m", "1", PROBE_S)
        assert (found.ok, found.text) == (True, "m:1 answers at 3 workers of 3 replicas")

        def fail(_: Any) -> Any:
            text = "broken"
            raise RuntimeError(text)

        put(pods[2], "1", fail)
        found = pods[0].routes.probe("m", "1", PROBE_S)
        assert not found.ok
        assert not found.unheard
        assert "replica c (c-incarn): m:1 cannot serve: worker 0" in found.text
        assert "replica b" not in found.text
        assert pods[1].routes.probe("m", "2", PROBE_S).ok
        # Whoever asked has heard, and nobody keeps the answer.
        until(lambda: not pods[2].replicas.tell()["probed"], "it is forgotten")


def test_several_ask_at_once(pods):
    with Fleet(pods), ThreadPoolExecutor(6) as pool:
        until(lambda: all(pod.routes.route("m").workers == 3 for pod in pods), "all are heard")
        found = pool.map(lambda n: pods[n % 3].routes.probe("m", "1", PROBE_S), range(6))
        assert [probe.text for probe in found if not probe.ok] == []


def test_who_dies_meanwhile_is_not_waited_for_and_who_is_silent_is_named(pods):
    with Fleet(pods) as fleet:
        until(lambda: pods[0].routes.route("m").workers == 3, "all are heard")
        let_go = threading.Event()

        def hang(inputs: Any) -> Any:
            let_go.wait()
            return [inputs["x"]]

        put(pods[1], "1", hang)
        try:
            found = pods[0].routes.probe("m", "1", 0.3)
            assert "replica b (b-incarn): m:1 cannot serve" in found.text
            assert "no answer within 0.3 s" in found.text
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(pods[0].routes.probe, "m", "1", PROBE_S)
                until(lambda: pods[1].replicas._probed, "it has been asked")
                fleet.alive.discard("b-incarnation")
                assert asked.result(PROBE_S).text == "m:1 answers at 2 workers of 2 replicas"
        finally:
            let_go.set()


def test_when_nobody_is_heard_nothing_is_said_of_the_version(pods):
    fleet = Fleet(pods)
    fleet.beat()
    found = pods[0].routes.probe("m", "1", 0.05)  # whose question reaches nobody
    assert (found.ok, found.unheard) == (False, True)
    assert "the other replicas are not heard" in found.text
    assert "b (b-incarn), c (c-incarn)" in found.text


def test_a_replica_without_workers_is_no_obstacle(pods, tmp_path):
    empty = RouteReplicas(
        "new", {"m": True}, WorkerRoutes(), lambda _: ReplicaRoute("", 0, 0, 0, ""), SystemClock(),
        SYNC_S,
    )  # fmt: skip
    with Fleet(pods[:2]) as fleet:
        fleet.pods["new-incarnation"] = type("Started", (), {"replicas": empty})()
        fleet.alive.add("new-incarnation")
        until(lambda: pods[0].routes.route("m").replicas == 3, "all are heard")
        assert pods[0].routes.route("m").replicas_applied == 3
        assert pods[0].routes.probe("m", "1", PROBE_S).text == (
            "m:1 answers at 2 workers of 2 replicas"
        )
        assert empty.probe("m", "1", PROBE_S).ok  # whoever leads need not serve


def test_counts_are_pooled_and_stay_when_a_replica_goes(pods):
    with Fleet(pods) as fleet:
        for pod, count in zip(pods, (5, 7, 11), strict=True):
            pod.ask(count, "1")
            pod.ask(3, "2")

        def all_of_it() -> bool:
            return all(pod.routes.observed("m") == {"1": 23, "2": 9} for pod in pods)

        until(all_of_it, "all are counted by all")
        view = pods[1].comparer.compare("m", "", "", 0)
        assert [one.first.n for one in view.metrics] == [23, 23, 23]
        assert "23 of 1 and 9 of 2" in view.text
        assert "alone" not in view.text
        since = pods[1].comparer.since("m")
        assert len(since["pages"]) == 3
        fleet.alive.discard("c-incarnation")
        until(lambda: pods[0].routes.route("m").replicas == 2, "it is gone")
        pods[1].ask(2, "1")
        until(lambda: pods[0].routes.observed("m") == {"1": 25, "2": 9}, "sums never fall")


def test_the_monitor_that_comes_after_another_counts_nothing_twice(pods):
    """Both tell of the same page for a while; and whoever is gone may be heard last."""
    pods[1].ask(6, "1")
    until(lambda: pods[1].routes.observed("m") == {"1": 6, "2": 0}, "it is counted")
    before = json.loads(json.dumps(pods[1].replicas.tell()))
    pods[1].ask(4, "1")
    until(lambda: pods[1].routes.observed("m") == {"1": 10, "2": 0}, "it is counted")
    after = json.loads(json.dumps(pods[1].replicas.tell()))
    for told in ({"x": before, "y": after}, {"y": after, "x": before}):
        pods[0].replicas.hear(told)
        assert pods[0].routes.observed("m") == {"1": 10, "2": 0}
        pods[1].replicas.hear(told)
        assert pods[1].routes.observed("m") == {"1": 10, "2": 0}


def test_of_many_models_only_the_answered_are_told(pods):
    names = {f"n{at}": True for at in range(MODELS_MAX)}
    pod = pods[0]
    pod.ask(4, "2")
    until(lambda: pod.routes.observed("m")["2"] == 4, "it is counted")
    crowded = RouteReplicas(
        "a", {**names, "m": True}, pod.workers, lambda _: ReplicaRoute("", 0, 1, 1, ""),
        SystemClock(), SYNC_S,
    )  # fmt: skip
    told = json.loads(json.dumps(crowded.tell()))
    [counts] = told["pages"]["m"].values()
    assert counts == {"1": 0, "2": 4}
    other = RouteReplicas(
        "b", {**names, "m": True}, WorkerRoutes(), lambda _: ReplicaRoute("", 0, 0, 0, ""),
        SystemClock(), SYNC_S,
    )  # fmt: skip
    other.hear({"a": told})
    assert other.answered("m") == {"1": 0, "2": 4}
    assert not other.is_whole("m")
    text = Comparer(pod.config, other, pod.routes.began, lambda _: []).compare("m", "", "", 0).text
    assert "those of this replica alone" in text


GARBAGE: list[Any] = [
    None, 3, [], {"models": 3, "pages": [], "wanted": 4, "probed": 5},
    {"models": {"m": {"revision": "x"}}, "pages": {"m": {"1": 2, "x": {"1": [1]}}}},
    {"wanted": {"k": 3, "l": {}}, "pages": {"m": []}, "probed": {"k": 4}},
    {"pages": {"m": {"7": {"1": -1, "2": "x"}}}, "wanted": {"z": {"timeout_s": "x"}}},
]  # fmt: skip


@pytest.mark.parametrize("told", GARBAGE)
def test_what_another_release_tells_does_no_harm(told, pods):
    pod = pods[0]
    pod.replicas.hear({"odd": told})
    json.dumps(pod.replicas.tell())
    assert pod.routes.route("m").workers == 1
    assert pod.routes.observed("m") == {"1": 0, "2": 0}
    assert np.isfinite(pod.routes.age_s())
    with pytest.raises(UnavailableError, match="their database does not take it"):
        pod.routes.set("m", {"1": 1.0}, by="operator", reason="")


def test_how_long_ago_others_were_heard():
    clock = making.Clock()
    replicas = RouteReplicas(
        "a", {"m": True}, WorkerRoutes(), lambda _: ReplicaRoute("", 0, 0, 0, ""), clock, SYNC_S
    )
    assert replicas.heard_s == float("inf")
    replicas.hear({})
    clock.advance(3)
    assert replicas.heard_s == 3
