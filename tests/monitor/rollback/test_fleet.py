"""Several monitors on one store: one decides, the others follow; kills, late wakers, operators."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.errors import ConflictError
from sidecar.monitor.actions.base import Outcome, Request, Result
from sidecar.monitor.rollback.store import Change, TakenError
from tests.monitor.rollback.bench import Bench, Clock, Lever

LEASE_S = 10.0


class Fleet:
    """Three on one store, clock and lever; the first leads."""

    def __init__(self, folder: Path, url: str = "", **settings: object) -> None:
        self.clock, self.lever = Clock(), Lever()
        first = Bench(folder, self.clock, self.lever, lease_s=LEASE_S, url=url, **settings)
        others = [
            Bench(folder, self.clock, self.lever, beside=first, lease_s=LEASE_S, **settings)
            for _ in range(2)
        ]
        self.all = [first, *others]
        self.first, self.second, self.third = self.all

    def pairs(self, count: int, **seen: int) -> None:
        """What all of them have counted together, as each has read it of the others."""
        for one in self.all:
            one.pairs(count, **seen)

    def tick(self, *live: Bench, seconds: float = 0.5) -> None:
        """Time goes on; the live ones renew, look and act."""
        self.clock.advance(seconds)
        for one in live or self.all:
            one.leadership.tick()
            one.book.follow(one.store)
            one.desk.check()
            one.actor.tick()

    def until_leads(self, heir: Bench, *live: Bench) -> None:
        for _ in range(60):
            self.tick(*live)
            if heir.book.leads:
                return
        raise AssertionError("nobody takes over")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_one_decides_and_acts_and_all_show_it(fleet: Fleet):
    fleet.pairs(2000, new_only=60)
    for _ in range(5):
        fleet.tick()
    assert [one.book.leads for one in fleet.all] == [True, False, False]
    assert fleet.lever.count("perform") == 1
    assert [one.state for one in fleet.all] == ["rolled_back"] * 3
    assert [len(one.told) for one in fleet.all] == [1, 0, 0]
    looks = [one.view.metrics[0].pairs for one in fleet.all]
    assert looks == [2000] * 3
    assert [name for name, _, _ in fleet.first.alerts()] == ["ModelRollback"]
    assert fleet.first.decision().fence == 1


@pytest.mark.parametrize("after", ["nothing", "looking", "deciding", "acting"])
def test_who_leads_next_goes_on(fleet: Fleet, after: str):
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    if after == "deciding":
        fleet.first.desk.check()
    if after == "acting":
        fleet.lever.shows = False
        fleet.tick(fleet.first)
        assert fleet.lever.count("perform") == 1
        fleet.lever.shows = True
    if after == "looking":
        fleet.tick(fleet.second, fleet.third)
        assert fleet.second.book.decisions() == [], "it is not its to decide"
    # And it is heard of no more.
    fleet.until_leads(fleet.second, fleet.second, fleet.third)
    fleet.tick(fleet.second, fleet.third)
    fleet.tick(fleet.second, fleet.third)
    assert fleet.second.state == fleet.third.state == "rolled_back"
    assert fleet.lever.at == "previous"
    assert fleet.second.decision().fence == 2
    assert [name for name, _, _ in fleet.second.alerts()] == ["ModelRollback"]
    assert len(fleet.second.book.decisions()) == 1


def test_a_leader_that_wakes_up_late_writes_and_does_nothing(fleet: Fleet):
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.first.desk.check()
    [mine] = fleet.first.book.open()
    fleet.until_leads(fleet.second, fleet.second, fleet.third)
    for _ in range(3):
        fleet.tick(fleet.second, fleet.third)
    assert fleet.lever.count("perform") == 1
    # It goes on in the middle of whatever it did when it was stopped.
    fleet.first.actor.advance(mine)
    fleet.first.desk.check()
    fleet.first.actor.tick()
    assert not fleet.first.book.move(mine, mine)
    assert fleet.lever.count("perform") == 1
    assert fleet.first.decision().fence == 1, "it has not read it yet"
    fleet.tick()
    assert fleet.first.decision().fence == 2
    assert fleet.first.state == "rolled_back"


def test_a_leader_stopped_within_an_action_is_told_before_it_changes_anything(fleet: Fleet):
    """As every action: what was read is swapped only if the one who read it still leads."""
    asked: list[Request] = []

    class Slow(Lever):
        def perform(self, request: Request) -> Result:
            asked.append(request)
            self._called("perform", request)
            fleet.clock.advance(3 * LEASE_S)  # SIGSTOP … SIGCONT
            if not request.leads():
                return Result(Outcome.RETRY, "another one decides by now")
            raise AssertionError("it changed something")

    fleet.tick()
    fleet.first.actor._actions["m"] = Slow()
    fleet.pairs(2000, new_only=60)
    fleet.first.desk.check()
    fleet.first.actor.tick()
    assert asked[0].fence == 1
    fleet.until_leads(fleet.second, fleet.second, fleet.third)
    for _ in range(3):
        fleet.tick(fleet.second, fleet.third)
    assert (fleet.lever.at, fleet.lever.count("perform")) == ("previous", 1)
    assert fleet.second.state == "rolled_back"


def test_what_was_decided_before_another_term_is_not_written_in_it(fleet: Fleet):
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.first.desk.check()
    [before] = fleet.first.book.open()
    tables = fleet.second.book._tables
    assert tables is not None
    fleet.second.book.follow(fleet.second.store)
    fleet.second.operators.undo(before.id, by="ann", reason="")
    own = fleet.first.book._tables
    assert own is not None
    with pytest.raises(TakenError, match="somebody else has gone on"):
        own.write(Change(moved=[(before, before)]), fleet.first.outbox, 1)


# --- operators anywhere -------------------------------------------------------------------------


def test_a_freeze_at_any_replica_holds_the_leader_at_once(fleet: Fleet):
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.first.desk.check()
    fleet.third.operators.freeze("m", frozen=True, by="ann", reason="demo")
    fleet.first.actor.tick()  # has not read it yet
    fleet.first.actor.tick()
    assert fleet.lever.count("perform") == 0
    assert fleet.first.decision().action_text == "Frozen by ann: demo."
    fleet.tick()
    assert [one.view.frozen_text for one in fleet.all] == ["by ann: demo"] * 3
    fleet.second.operators.freeze("m", frozen=False, by="ann", reason="")
    for _ in range(3):
        fleet.tick()
    assert fleet.lever.count("perform") == 1


def test_approved_at_a_follower_the_leader_acts(tmp_path: Path):
    fleet = Fleet(tmp_path, approve=True)
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.tick()
    [decision] = fleet.third.book.decisions()
    made = fleet.third.operators.approve(decision.id, by="ann", reason="")
    assert made.approved_by == "ann"
    fleet.third.actor.tick()
    assert fleet.lever.count("perform") == 0, "it is not the follower's to do"
    for _ in range(3):
        fleet.tick()
    assert fleet.lever.count("perform") == 1
    assert [one.state for one in fleet.all] == ["rolled_back"] * 3


def test_an_approval_is_not_written_over_by_a_leader_that_has_not_read_it(tmp_path: Path):
    fleet = Fleet(tmp_path, approve=True)
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.first.desk.check()
    fleet.second.operators.approve(fleet.first.decision().id, by="ann", reason="")
    fleet.first.actor.tick()  # would say that it waits
    for _ in range(3):
        fleet.tick()
    assert fleet.first.decision().approved_by == "ann"
    assert fleet.first.state == "rolled_back"


def test_undone_at_a_follower_it_is_judged_anew_by_the_leader(fleet: Fleet):
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    for _ in range(3):
        fleet.tick()
    name = fleet.first.decision().id
    fleet.second.operators.undo(name, by="ann", reason="the test is wrong")
    assert fleet.lever.at == "new"
    fleet.pairs(10)  # the leader, which has not read it, writes how the pair stands
    fleet.first.desk.check()
    fleet.tick()
    assert [one.view.state for one in fleet.all] == ["insufficient"] * 3
    assert fleet.first.book.standing(fleet.first.id).rounds == 1
    with pytest.raises(ConflictError, match="closed already"):
        fleet.third.operators.undo(name, by="bob", reason="")
    fleet.pairs(2000, new_only=60)
    for _ in range(3):
        fleet.tick()
    assert len(fleet.first.book.decisions()) == 2


def test_the_leader_begins_to_act_while_somebody_closes_it(fleet: Fleet):
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.first.desk.check()
    name = fleet.first.decision().id
    fleet.third.book.follow(fleet.third.store)
    fleet.lever.shows = False
    fleet.first.actor.tick()
    with pytest.raises(ConflictError, match="being acted on right now"):
        fleet.third.operators.undo(name, by="ann", reason="")


# --- time ----------------------------------------------------------------------------------------


def test_the_cool_down_counts_over_leaders(tmp_path: Path):
    fleet = Fleet(tmp_path, cooldown_s=100.0)
    fleet.tick()
    fleet.pairs(2000, new_only=60)
    for _ in range(3):
        fleet.tick()
    fleet.first.operators.undo(fleet.first.decision().id, by="ann", reason="")
    fleet.until_leads(fleet.second, fleet.second, fleet.third)
    fleet.pairs(2000, new_only=60)
    for _ in range(3):
        fleet.tick(fleet.second, fleet.third)
    [waits, _] = fleet.second.book.decisions()
    assert waits.action_state == "waiting"
    assert "acted on less than 100 s ago" in waits.action_text
    while fleet.second.book.cooling_s("m", 100.0) > 0:
        fleet.tick(fleet.second, fleet.third, seconds=2)
    for _ in range(3):
        fleet.tick(fleet.second, fleet.third)
    assert fleet.lever.count("perform") == 2


def test_whoever_looks_does_not_wait_for_who_writes(fleet: Fleet):
    """The lock is held while a store hangs: status calls, and alerts, are answered all the same."""
    import threading

    fleet.tick()
    fleet.pairs(2000, new_only=60)
    fleet.tick()
    taken, done = threading.Event(), threading.Event()

    def hang() -> None:
        with fleet.first.book.lock:
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hang)
    thread.start()
    assert taken.wait(10)
    try:
        assert fleet.first.view.decision is not None
        assert fleet.first.views.decisions("m", 10)
        assert fleet.first.book.still_stands("nothing") is False
        assert not done.is_set()
    finally:
        done.set()
        thread.join()


def test_all_of_it_on_postgresql(tmp_path: Path, database_url: str):
    """Its leases go by its own clock, so the test waits for nobody's to run out."""
    fleet = Fleet(tmp_path, database_url)
    assert [one.leadership.is_leader for one in fleet.all] == [True, False, False]
    fleet.pairs(2000, new_only=60)
    fleet.first.book.follow(fleet.first.store)
    fleet.first.desk.check()
    name = fleet.first.decision().id
    fleet.third.operators.freeze("m", frozen=True, by="ann", reason="")
    fleet.first.actor.tick()
    assert fleet.lever.count("perform") == 0
    fleet.third.operators.freeze("m", frozen=False, by="ann", reason="")
    fleet.first.leadership.stop()
    assert fleet.first.store is not None
    fleet.first.leadership.release(fleet.first.store)
    for _ in range(4):
        fleet.tick(fleet.second, fleet.third)
    assert (fleet.lever.at, fleet.lever.count("perform")) == ("previous", 1)
    assert fleet.second.decision().fence == 2
    fleet.third.operators.undo(name, by="ann", reason="")
    fleet.tick(fleet.second, fleet.third)
    assert [one.state for one in (fleet.second, fleet.third)] == ["insufficient"] * 2
    assert fleet.second.alerts() == [("ModelRollback", "resolved", "waiting")]
    fleet.first.store.close()
