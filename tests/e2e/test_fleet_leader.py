"""Three replicas on one PostgreSQL, under traffic: whoever dies, one action, and it is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.fleets import NEW_IMAGE, OLD_IMAGE, Fleet, Replica, stopped, until
from tests.support.postgres import PostgresServer

# Monitors have the lowest priority: on a busy machine they start, and compare, when others rest.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def fleet(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    url = postgres_server.make("fleet-leader")
    with Fleet(tmp_path_factory.mktemp("fleet"), url) as made:
        yield made


@pytest.fixture
def changed(fleet: Fleet) -> int:
    """The regression begins (anew: an operator at some replica takes the rollback back); how often
    the Deployment was changed until then."""
    if fleet.image() == OLD_IMAGE:
        fleet.undo(fleet.replicas[-1])
    assert fleet.image() == NEW_IMAGE
    return len(fleet.changes())


def ends_well(fleet: Fleet, changed: int, told: int) -> None:
    """Every replica shows it; the Deployment was changed once; it was told; and whatever became of
    monitors and the database, no request has failed."""
    until(fleet.all_rolled_back, "all show that it is rolled back", within_s=300)
    assert fleet.image() == OLD_IMAGE
    assert len(fleet.changes()) == changed + 1, fleet.changes()
    until(lambda: fleet.firing() > told, "it is told")
    assert len(fleet.changes()) == changed + 1, fleet.changes()
    assert not fleet.failures, fleet.failures


def decided(replica: Replica) -> bool:
    view = replica.view()
    return view is not None and view.state not in {"insufficient", "ok"}


@pytest.mark.parametrize("moment", ["before", "decided", "acted"])
def test_a_leader_that_is_killed_leaves_one_action(fleet: Fleet, changed: int, moment: str):
    told = fleet.firing()
    pid, fence = until(lambda: (found := fleet.leader())[0] and found, "somebody leads")
    if moment == "decided":
        until(lambda: any(map(decided, fleet.replicas)), "it is decided", within_s=300)
    if moment == "acted":
        until(lambda: len(fleet.changes()) > changed, "it is acted", within_s=300)
    os.kill(pid, signal.SIGKILL)
    until(lambda: fleet.leader()[1] > fence, "another one leads")
    ends_well(fleet, changed, told)


def test_a_leader_that_stands_still_and_wakes_up_changes_nothing(fleet: Fleet, changed: int):
    told = fleet.firing()
    pid, fence = until(lambda: (found := fleet.leader())[0] and found, "somebody leads")
    with stopped(pid):
        until(lambda: fleet.leader()[1] > fence, "another one leads")
        until(lambda: fleet.image() == OLD_IMAGE, "which acts", within_s=300)
    ends_well(fleet, changed, told)


def test_the_database_stands_still_and_is_started_again_meanwhile(
    fleet: Fleet, postgres_server: PostgresServer, changed: int
):
    told, answered = fleet.firing(), sum(fleet.answered)
    postgres_server.pause()
    try:
        until(lambda: sum(fleet.answered) > answered + 200, "requests are answered all the same")
        until(lambda: all(one.view() for one in fleet.replicas), "and so are those who look")
    finally:
        postgres_server.resume()
    postgres_server.stop(how=signal.SIGQUIT)
    postgres_server.start()
    ends_well(fleet, changed, told)


def test_all_have_counted_the_same(fleet: Fleet):
    """Each knows of every life, dead ones too, what that has counted itself; and shows the sum."""
    fleet.quiet()
    try:
        until(fleet.is_settled, "all have read what the others wrote", within_s=300)
        lives = fleet.replicas[0].evidence()
        until(lambda: len(set(fleet.counted())) == 1, "all show the same", within_s=300)
    finally:
        fleet.loud()
    own = {one.client.status().incarnation for one in fleet.replicas}
    assert len(own) == 3
    assert own < set(lives), "and those that were killed"
    pair = ("m:2/onnx", "m:1/onnx", "", "error")
    counted = {
        life: sum(n for name, n in counts.items() if name[:4] == pair)
        for life, counts in lives.items()
    }
    assert sum(1 for n in counted.values() if n > 0) >= 3
    assert sum(counted.values()) <= sum(fleet.answered)


def test_who_asks_any_of_them_is_told_who_decides(fleet: Fleet):
    from tests.e2e.test_rollback import sidecar

    for replica in fleet.replicas:

        def said(replica: Replica = replica) -> bool:
            code, text = sidecar("status", replica.monitor)
            return code in {0, 1, 3} and "decides, process" in text and "3 replicas live" in text

        until(said, "it says who decides", within_s=300)
    code, text = sidecar("rollback", "status", fleet.replicas[0].monitor)
    assert code == 0
    assert "decides, process" in text
