"""The fleet's rounds on a real PostgreSQL: what fails in one, and what is done all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from typing_extensions import override

from exporters import instruments
from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.fleet_side import FleetSide, fleet_side
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.leader import Leadership
from sidecar.monitor.measured_fleet import MeasuredFleet
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store

KEY = EvidenceKey("m", "m:2/new", "m:1/old", "", "error", "p")


class Evidence(SharedEvidence):
    """``mistaken``: writing it ends in a mistake of ours."""

    mistaken = False

    @override
    def share(self, store: Store) -> None:
        if self.mistaken:
            _ = 1 // 0
        super().share(store)


class Fleet:
    """One monitor's, whose rounds are called by hand, with steps that count."""

    def __init__(self, url: str, folder: Path) -> None:
        self.clock = SystemClock()
        self.evidence = Evidence("", self.clock)
        settings = StoreConfig(url=url, timeout_s=0.5)
        self.keeper = Keeper(
            folder, self.evidence, EventLog(self.clock), self.clock, shared=settings
        )
        made = fleet_side(settings, self.keeper, self.clock)
        assert made is not None
        self.side: FleetSide = made
        self.done: list[str] = []
        self.side.every_sync("one", self.step("one"))
        self.side.every_sync("two", self.step("two"))
        self.side.at_end("last", self.step("last"))

    def step(self, name: str) -> Callable[[Store], None]:
        return lambda _: self.done.append(name)

    def sync(self) -> tuple[bool, list[str]]:
        """A round: what it returns, and the steps that were done."""
        self.done.clear()
        self.evidence.add(KEY, {"n": 1})
        self.side.tell()
        return self.side.sync(), list(self.done)

    def exchanged_s(self) -> float:
        """When counts were last exchanged, as it is told."""
        measured = MeasuredFleet(Leadership(lambda: None, self.clock), self.side, self.clock)
        [point] = [
            point for point in measured.points()
            if point.instrument is instruments.FLEET_LAST_EXCHANGE
        ]  # fmt: skip
        return point.value


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(database_url, tmp_path)
    with closing(made.side):
        yield made
    made.keeper.close_shared()


def seen(url: str) -> list[int]:
    """When each replica was last heard of."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT seen_ns FROM replicas")]


def test_a_mistake_of_ours_in_evidence_is_not_the_others_loss(fleet, database_url, caplog):
    caplog.set_level(logging.INFO, "sidecar.monitor.fleet")
    assert fleet.sync() == (True, ["one", "two"])
    [before_ns], before_s = seen(database_url), fleet.exchanged_s()
    fleet.evidence.mistaken = True
    assert fleet.sync() == (True, ["one", "two"])
    assert fleet.sync() == (True, ["one", "two"])
    [after_ns] = seen(database_url)
    assert after_ns > before_ns, "it lives"
    assert len(fleet.side.alive()) == 1
    assert fleet.exchanged_s() == pytest.approx(before_s, abs=0.01), "and has exchanged nothing"
    assert caplog.text.count("the fleet's step evidence failed") == 1
    assert "ZeroDivisionError" in caplog.text

    fleet.evidence.mistaken = False
    assert fleet.sync() == (True, ["one", "two"])
    assert "the fleet's step evidence goes on" in caplog.text
    assert fleet.exchanged_s() > before_s
    with psycopg.connect(database_url) as connection:
        [[life]] = connection.execute("SELECT incarnation FROM packs").fetchall()
    assert life == fleet.keeper.incarnation
    assert fleet.evidence.cells(KEY) == {"n": 4}


def test_a_store_that_refuses_evidence_is_not_asked_for_more(fleet, database_url, caplog):
    assert fleet.sync() == (True, ["one", "two"])
    [before_ns], before_s = seen(database_url), fleet.exchanged_s()
    with psycopg.connect(database_url) as other:
        other.execute("LOCK TABLE lives IN ACCESS EXCLUSIVE MODE")  # the heartbeat needs it not
        assert fleet.sync() == (False, [])
    assert seen(database_url) == [before_ns]
    assert fleet.exchanged_s() == pytest.approx(before_s, abs=0.01)
    assert "the fleet's step evidence cannot be done" in caplog.text
    assert fleet.sync() == (True, ["one", "two"])
    assert seen(database_url) > [before_ns]


def test_a_heartbeat_that_cannot_be_made_keeps_no_step(fleet, database_url):
    """What is told with it is asked of others, and may raise."""
    assert fleet.sync() == (True, ["one", "two"])
    [before_ns] = seen(database_url)
    fleet.side.replicas.tell("odd", lambda: 1 // 0)
    assert fleet.sync() == (True, ["one", "two"])
    assert seen(database_url) == [before_ns]


def test_a_step_that_fails_keeps_no_other(fleet):
    fleet.side.every_sync("mistaken", lambda _: 1 // 0)
    fleet.side.every_sync("three", fleet.step("three"))
    assert fleet.sync() == (True, ["one", "two", "three"])


def test_at_the_end_a_mistake_in_evidence_keeps_nothing_either(fleet, database_url):
    assert fleet.sync() == (True, ["one", "two"])
    assert len(seen(database_url)) == 1
    fleet.evidence.mistaken = True
    fleet.side.start()
    fleet.side.close()
    assert fleet.done[-1] == "last"
    assert seen(database_url) == [], "it has said good-bye"
