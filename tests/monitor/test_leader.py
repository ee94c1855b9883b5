"""Who leads, by a clock that the test turns: leases, terms, stopping, waking up late."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.monitor import store_tables as tables
from sidecar.monitor.leader import MARGIN, Leadership, NotLeaderError
from sidecar.monitor.rows import StoreError
from sidecar.monitor.store import Store
from tests.monitor.rollback.bench import Clock

LEASE_S = 10.0


class Two:
    """Two that share a store and a clock, as two replicas would."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store: Store | None = Store.open(folder, self.clock)
        self.told: list[str] = []
        self.first, self.second = (self.one(name) for name in ("first", "second"))

    def one(self, name: str) -> Leadership:
        return Leadership(
            lambda: self.store, self.clock, lease_s=LEASE_S,
            changed=lambda: self.told.append(name),
        )  # fmt: skip


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path)


def guarded(store: Store, leadership: Leadership, fence: int | None = None) -> bool:
    with store._writing() as connection:
        try:
            leadership.guard(connection, fence)
        except NotLeaderError:
            return False
    return True


def test_one_leads_and_the_other_takes_over_when_the_lease_is_over(two: Two):
    assert two.first.tick()
    assert not two.second.tick()
    assert (two.first.fence, two.second.fence) == (1, 0)
    assert two.second.term == two.first.term
    two.clock.advance(LEASE_S * (1 - MARGIN) - 0.001)
    assert two.first.is_leader
    two.clock.advance(0.001)
    assert not two.first.is_leader, "it has stopped before anybody else may begin"
    assert not two.second.tick()
    two.clock.advance(LEASE_S * MARGIN)
    assert two.second.tick()
    assert two.second.fence == 2
    assert not two.first.tick()
    assert two.told == ["first", "second", "first"]
    assert (two.first.terms, two.second.terms) == (2, 2)


def test_renewed_in_time_it_stays_the_same_term(two: Two):
    two.first.tick()
    for _ in range(50):
        two.clock.advance(LEASE_S / 4)
        assert two.first.tick()
        assert not two.second.tick()
    assert two.first.fence == 1


def test_a_lease_that_ran_out_and_is_taken_again_is_another_term(two: Two):
    two.first.tick()
    assert two.store is not None
    two.clock.advance(2 * LEASE_S)
    assert two.first.tick()
    assert two.first.fence == 2
    assert guarded(two.store, two.first)
    assert guarded(two.store, two.first, 2)
    assert not guarded(two.store, two.first, 1), "decided in the term before"


def test_who_wakes_up_late_knows_it_before_it_asks(two: Two):
    two.first.tick()
    two.clock.advance(3 * LEASE_S)
    assert two.store is not None
    assert not two.first.is_leader
    assert not guarded(two.store, two.first)


@pytest.mark.parametrize("which", ["monotonic", "wall"])
def test_either_clock_ends_a_lease(two: Two, which: str):
    two.first.tick()
    if which == "wall":  # the other stands still while a machine sleeps
        two.clock.jump(LEASE_S)
    else:
        two.clock.jump(-LEASE_S)
        two.clock.advance(LEASE_S)
    assert not two.first.is_leader


def test_the_row_is_looked_at_in_the_transaction(two: Two):
    two.first.tick()
    store = two.store
    assert store is not None
    with store._writing() as connection:
        change = {"owner": "another", "fence": 7}
        connection.execute(tables.LEADER.update().values(change))
    assert two.first.is_leader, "as far as it knows"
    assert not guarded(store, two.first)
    assert not two.first.is_leader


def test_who_stops_lets_the_next_begin_at_once(two: Two):
    two.first.tick()
    two.first.stop()
    assert not two.first.is_leader
    assert not two.second.tick(), "what it counted is not written yet"
    assert two.store is not None
    two.first.release(two.store)
    assert two.second.tick()
    assert two.second.fence == 2


def test_without_a_store_nobody_leads_and_it_is_said(two: Two):
    two.first.tick()
    store, two.store = two.store, None
    assert two.first.tick(), "until the lease is over"
    assert "not open" in two.first.message
    two.clock.advance(LEASE_S)
    assert not two.first.tick()
    assert two.first.silent_s == LEASE_S
    two.store = store
    assert two.first.tick()
    assert two.first.message == ""


def test_a_store_that_fails_ends_nothing_but_the_lease(two: Two, monkeypatch):
    two.first.tick()

    def refuse(*_):
        message = "disk full"
        raise StoreError(message)

    monkeypatch.setattr(Store, "part", refuse)
    two.clock.advance(LEASE_S / 2)
    assert two.first.tick()
    assert two.first.message == "disk full"
    two.clock.advance(LEASE_S / 2)
    assert not two.first.tick()


def test_alone_it_leads_as_soon_as_there_is_a_store_and_each_start_is_a_term(tmp_path: Path):
    clock = Clock()
    for life in (1, 2, 3):
        store = Store.open(tmp_path, clock)
        alone = Leadership(lambda: None, clock)
        assert not alone.is_leader
        alone.attend(store)
        assert alone.fence == life
        clock.advance(10**6)
        alone.attend(store)
        assert alone.fence == life, "nobody else has it: nothing runs out"
        assert guarded(store, alone)
        alone.stop()
        alone.release(store)
        store.close()
