"""Blocks of pairs over replicas on a real PostgreSQL: handed over, joined, counted once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.errors import ConflictError
from sidecar.monitor import harms, pool_rests, pool_store
from sidecar.monitor import store_tables as tables
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.pool import pairs_in
from sidecar.monitor.pool_rests import POOLED, SLICE_NS
from sidecar.monitor.pool_side import PoolSide
from sidecar.monitor.pool_store import POOL, PoolTables
from sidecar.monitor.rows import EvidenceKey, StoreError
from sidecar.monitor.store import Store
from sidecar.monitor.version_blocks import BlockBets
from tests.monitor import making

FLIP = EvidenceKey("m", "m:2/new", "m:1/old", "y", "flip", "p")
BY_20 = replace(FLIP, metric=harms.by("flip", POOLED))


class Leads:
    """Who leads, as a test wants it."""

    def __init__(self) -> None:
        self.fence, self.is_over = 0, False

    def guard(self, connection: sa.Connection, fence: int | None = None) -> None:
        assert fence == self.fence
        assert connection.scalar(sa.select(sa.literal(1))) == 1
        if self.is_over:
            raise ConflictError("another monitor decides by now")


class Flaky:
    """A store whose answers may be lost after a write."""

    def __init__(self, store: Store) -> None:
        self._store, self.loses = store, False

    def part(self, made):
        tables = self._store.part(made)
        flaky = self

        class Part:
            def hand_over(self, *row):
                done = tables.hand_over(*row)
                if flaky.loses:
                    raise StoreError("the connection was lost")
                return done

            def __getattr__(self, name):
                return getattr(tables, name)

        return Part()

    @property
    def database(self):
        return self._store.database


class Replica:
    """One monitor of a fleet, as far as counts go."""

    def __init__(self, url: str, name: str, clock: making.Clock) -> None:
        self.store = Store.connect(StoreConfig(url=url), SystemClock(), name)
        self.flaky = Flaky(self.store)
        self.clock = clock
        self.evidence = SharedEvidence(name, clock)
        self.evidence.become(name)
        self.leads = Leads()
        self.side = PoolSide(self.evidence, self.leads, clock, sync_s=1.0)
        self.bets = BlockBets(self.evidence)

    def add(self, values: list[float], block: int = 0, key: EvidenceKey = FLIP) -> None:
        seen_ns = [self.clock.now_ns()] * len(values)
        self.bets.add(key, values, [block] * len(values), [POOLED], seen_ns=seen_ns)

    def hand_over(self, *, is_answer_lost: bool = False) -> None:
        self.flaky.loses = is_answer_lost
        try:
            self.side.hand_over(self.flaky)
        except StoreError:
            assert is_answer_lost

    def sync(self) -> None:
        self.evidence.share(self.store)
        self.evidence.refresh(self.store)
        self.hand_over()
        self.side.join(self.store)

    def waiting(self) -> int:
        """In memory: lumps, and a row that may or may not be written."""
        return self.evidence.rests.pairs(BY_20)

    def unsent(self) -> tuple[str, int, int] | None:
        row = self.side._row
        if row is None:
            return None
        return self.side._life, row.seq, sum(one[2] for rest in row.rests for one in rest[-1])


@contextmanager
def fleet(url: str, count: int) -> Iterator[list[Replica]]:
    clock = making.Clock()
    members = [Replica(url, f"life-{at}", clock) for at in range(count)]
    try:
        yield members
    finally:
        for member in members:
            member.store.close()


def pass_s(members: list[Replica], seconds: float) -> None:
    members[0].clock.advance(seconds)


def counted(evidence: SharedEvidence) -> float:
    """Pairs in whole blocks, of anybody: a block counts pairs / 20."""
    found = [evidence.cells(key) for key in evidence.all_keys() if key.metric == "flip/20"]
    return POOLED * sum(cells["n10"] + cells["n00"] for cells in found)


def test_rests_of_all_replicas_become_blocks(database_url):
    with fleet(database_url, 3) as members:
        members[0].leads.fence = 7
        for at, member in enumerate(members):
            member.add([float(at == 1)] + [0.0] * 8)
            member.sync()
        pass_s(members, 3)
        members[0].sync()
        # 27 pairs, of which the third replica's nine do not fit into 20 by themselves.
        for member in members:
            member.evidence.refresh(member.store)
            assert member.evidence.cells(BY_20) == pytest.approx(
                {"n11": 0, "n10": 1, "n01": 0, "n00": 27 / 20 - 1}
            )
            assert member.evidence.own_cells(BY_20) == {}
        [row] = [row for row in members[1].evidence.rows("m") if row.key.metric == "flip/20"]
        assert row.incarnation == POOL
        part = members[0].store.part(PoolTables)
        assert part.handed_over() == []
        assert part.pool().series[BY_20].pairs == 27


def test_only_who_leads_joins_and_nothing_is_done_by_halves(database_url):
    with fleet(database_url, 2) as members:
        members[0].add([0.0] * 15)
        members[1].add([1.0] * 15)
        for member in members:
            member.sync()
        pass_s(members, 3)
        members[0].leads.fence, members[0].leads.is_over = 3, True
        members[0].sync()
        assert counted(members[0].evidence) == 0
        rows = members[0].store.part(PoolTables).handed_over()
        assert sum(lump.pairs for row in rows for lump in row.rests.get(BY_20, ())) == 30
        members[1].leads.fence = 4
        members[1].sync()
        assert counted(members[1].evidence) == 30


def test_a_row_whose_answer_was_lost_counts_once(database_url):
    with fleet(database_url, 2) as members:
        members[1].leads.fence = 1
        for is_taken_before in (False, True):
            before = counted(members[1].evidence)
            members[0].add([1.0] * 12)
            members[0].hand_over(is_answer_lost=True)
            members[0].add([1.0] * 10)
            pass_s(members, 3)
            if is_taken_before:
                members[1].side.join(members[1].store)
            members[0].hand_over()
            pass_s(members, 3)
            members[1].side.join(members[1].store)
            members[1].side.join(members[1].store)
            assert counted(members[1].evidence) == before + 22
        assert members[1].store.part(PoolTables).handed_over() == []


def test_without_a_leader_a_replica_makes_blocks_of_its_own(database_url, monkeypatch):
    monkeypatch.setattr(pool_store, "ROWS_MAX", 5)
    monkeypatch.setattr(pool_rests, "LUMPS_MAX", 30)
    with fleet(database_url, 1) as [alone]:
        for _ in range(105):
            alone.add([0.0])
            alone.hand_over()
            pass_s([alone], 1)
        assert len(alone.store.part(PoolTables).handed_over()) == 5
        own = sum(alone.evidence.own_cells(BY_20).values()) * POOLED
        unsent = alone.unsent()
        assert unsent is not None
        assert (own, alone.waiting(), unsent[2]) == (60, 39, 1)
        alone.leads.fence = 1
        alone.sync()
        alone.sync()
        pass_s([alone], 3)
        alone.sync()
        pool = alone.store.part(PoolTables).pool()
        assert counted(alone.evidence) + pairs_in(pool.series.values()) == 105


def test_stretches_of_the_pool_are_joined_as_everybody_joins_theirs(database_url):
    with fleet(database_url, 2) as members:
        members[0].leads.fence = 1
        for block in range(60):
            members[1].add([0.0] * 12, block)
            members[0].add([0.0] * 8, block)
            for member in members:
                member.sync()
            pass_s(members, 3)
            members[0].side.join(members[0].store)
        for member in members:
            member.evidence.refresh(member.store)
            assert counted(member.evidence) == 60 * 20
            stretches = {k.block for k in member.evidence.all_keys() if k.metric == "flip/20"}
            assert len(stretches) < 45
        packs = sa.select(tables.PACKS.c.block).where(tables.PACKS.c.incarnation == POOL)
        assert len(members[0].store.database.read(packs)) == 60  # gone ones say so, for a while
        pass_s(members, 3600)
        members[0].add([0.0] * 40, 60)
        members[0].add([0.0] * 20, 60, replace(FLIP, output="z"))
        members[0].sync()
        pass_s(members, 3)
        members[0].add([0.0] * 19, 60)
        members[0].sync()
        pass_s(members, 3)
        members[0].add([0.0] * 19, 60)
        members[0].sync()
        pass_s(members, 3)
        members[0].sync()
        assert len(members[0].store.database.read(packs)) < 45


def test_a_pool_that_was_taken_for_dead_goes_on_from_nothing(database_url):
    with fleet(database_url, 2) as members:
        members[0].leads.fence = 1
        members[0].add([1.0] * 19)
        members[1].add([1.0] * 2)
        for expected in (21, 21):
            for member in members:
                member.sync()
            pass_s(members, 3)
            members[0].sync()
            assert counted(members[0].evidence) == expected
            # As folding does it: the counts become the past's, which is not looked at here.
            with members[0].store.database.writing() as connection:
                mine = tables.PACKS.c.incarnation == POOL
                connection.execute(sa.delete(tables.PACKS).where(mine))
                of_pool = tables.LIVES.c.incarnation == POOL
                connection.execute(sa.update(tables.LIVES).where(of_pool).values(folded=True))
            members[0].add([0.0] * 19)
            members[1].add([0.0] * 2)


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(1, 30)),
        st.tuples(st.just("hand over"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("sync"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("lead"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("die"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ops=OPS)
def test_every_pair_is_counted_once_whoever_dies_or_leads(postgres_server, ops):
    url = postgres_server.make(f"pool-{random.SystemRandom().randrange(2**48):x}")
    with fleet(url, 3) as members:
        came = went = 0.0
        for what, at, more in ops:
            member = members[at] if what != "wait" else members[0]
            if what == "add":
                member.add([float(n % 2) for n in range(more)], came // 1000)
                came += more
            elif what == "hand over":
                member.hand_over(is_answer_lost=more)
            elif what == "sync":
                member.sync()
            elif what == "lead":
                for one in members:  # the one before may not know yet: its transaction is refused
                    one.leads.is_over = one.leads.fence > 0
                    one.leads.fence = one.leads.fence if more else 0
                member.leads.fence, member.leads.is_over = 5, False
            elif what == "die":
                # What it has counted itself, and did not write, is gone with it; nothing else is.
                member.evidence.share(member.store)
                went += member.waiting()
                row = member.unsent()
                went += row[2] if row is not None and not _is_written(member, row) else 0
                member.store.close()
                members[at] = Replica(url, f"life-{came}-{went}-{len(ops)}-{at}", member.clock)
                members[at].leads = member.leads
                members[at].side._leads = member.leads
            else:
                pass_s(members, at * SLICE_NS / 1e9)
        part = members[0].store.part(PoolTables)
        for member in members:
            member.evidence.share(member.store)
        members[0].evidence.refresh(members[0].store)
        pool = part.pool()
        rows = {
            (row.life, row.seq): sum(lump.pairs for lump in row.rests.get(BY_20, ()))
            for row in part.handed_over()
            if row.seq > pool.seen.get(row.life, (0, 0))[0]
        }
        for member in members:
            if (row := member.unsent()) is not None and row[1] > pool.seen.get(row[0], (0, 0))[0]:
                rows[row[0], row[1]] = row[2]
        places = (
            counted(members[0].evidence) + sum(rows.values()) + pairs_in(pool.series.values())
            + sum(member.waiting() for member in members)
        )  # fmt: skip
        assert places + went == pytest.approx(came)


def _is_written(member: Replica, row: tuple[str, int, int]) -> bool:
    part = member.store.part(PoolTables)
    is_there = any((one.life, one.seq) == row[:2] for one in part.handed_over())
    return is_there or part.pool().seen.get(row[0], (0, 0))[0] >= row[1]


def test_rows_are_taken_in_the_order_of_each_life(database_url, monkeypatch):
    monkeypatch.setattr(pool_store, "_TAKEN_MAX", 3)
    with fleet(database_url, 2) as members:
        members[0].leads.fence = 1
        for _ in range(8):
            for member in members:
                member.add([0.0] * 3)
                member.hand_over()
            pass_s(members, 1)
        for _ in range(7):
            members[0].side.join(members[0].store)
            pass_s(members, 1)
        assert members[0].store.part(PoolTables).handed_over() == []
        pool = members[0].store.part(PoolTables).pool()
        assert counted(members[0].evidence) + pairs_in(pool.series.values()) == 48
