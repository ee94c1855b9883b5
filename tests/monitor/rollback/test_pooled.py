"""Served requests over replicas: sums that never fall, and what is told of them once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidecar.monitor.rollback.pooled import PooledTraffic
from tests.monitor.rollback.bench import NEW, PREVIOUS
from tests.monitor.rollback.test_fleet import Fleet


class Replicas:
    """What two gateways count, and what their monitors have told."""

    def __init__(self) -> None:
        self.served: dict[str, dict[str, tuple[int, int]]] = {"a": {}, "b": {}}
        self.told: dict[str, dict[str, Any]] = {}
        self.sources = {"a": "a:1", "b": "b:1"}
        self.pools = {name: self.one(name) for name in ("a", "b")}

    def one(self, name: str) -> PooledTraffic:
        return PooledTraffic(
            lambda: self.served[name], lambda: self.sources[name], lambda: list(self.told.values())
        )

    def beat(self) -> None:
        self.told = {name: pool.tell() for name, pool in self.pools.items()}


def test_the_sum_is_of_what_was_told_and_of_what_is_counted_here():
    all_of = Replicas()
    all_of.served = {"a": {"v": (10, 1)}, "b": {"v": (5, 2), "w": (1, 0)}}
    all_of.beat()
    all_of.served["a"]["v"] = (12, 1)  # not told yet
    assert all_of.pools["a"].traffic() == {"v": (17, 3), "w": (1, 0)}
    assert all_of.pools["b"].traffic() == {"v": (15, 3), "w": (1, 0)}


def test_it_does_not_fall_when_one_goes_or_begins_anew():
    all_of = Replicas()
    all_of.served = {"a": {"v": (10, 1)}, "b": {"v": (5, 2)}}
    all_of.beat()
    assert all_of.pools["a"].traffic() == {"v": (15, 3)}
    del all_of.told["b"]
    assert all_of.pools["a"].traffic() == {"v": (15, 3)}
    all_of.sources["b"], all_of.served["b"] = "b:2", {"v": (1, 0)}  # its gateway began anew
    all_of.beat()
    assert all_of.pools["a"].traffic() == {"v": (16, 3)}


def test_a_gateway_whose_monitor_alone_began_anew_is_counted_once():
    all_of = Replicas()
    all_of.served = {"a": {}, "b": {"v": (5, 2)}}
    all_of.beat()
    dead = all_of.told["b"]
    all_of.served["b"]["v"] = (7, 2)
    all_of.beat()
    all_of.told["the life before"] = dead
    assert all_of.pools["a"].traffic() == {"v": (7, 2)}


def test_what_cannot_be_read_is_nothing():
    all_of = Replicas()
    all_of.told = {"b": {"source": "b:1", "served": {"v": "many"}}, "c": {}}
    assert all_of.pools["a"].traffic() == {}


def test_errors_while_serving_are_told_once_over_leaders(tmp_path: Path):
    fleet = Fleet(tmp_path)
    traffic = {NEW: (0, 0), PREVIOUS: (0, 0)}
    for one in fleet.all:
        one.traffic = traffic
    fleet.tick()
    traffic[NEW] = (1000, 200)
    fleet.tick()
    [told] = fleet.first.book.decisions()
    assert told.kind == "ModelServingErrors"
    traffic[NEW] = (2000, 400)
    fleet.until_leads(fleet.second, fleet.second, fleet.third)
    fleet.tick(fleet.second, fleet.third)
    assert [one.id for one in fleet.second.book.decisions()] == [told.id]
    # Closed at one replica, the others count from there on as well.
    fleet.third.operators.undo(told.id, by="ann", reason="known")
    for _ in range(3):
        fleet.tick(fleet.second, fleet.third)
    assert len(fleet.second.book.decisions()) == 1
    traffic[NEW] = (3000, 600)
    fleet.tick(fleet.second, fleet.third)
    assert len(fleet.second.book.decisions()) == 2
    assert len([one for one in fleet.second.alerts() if one[1] == "firing"]) == 1
