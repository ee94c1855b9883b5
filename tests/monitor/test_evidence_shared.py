"""Evidence of several monitors on a real PostgreSQL: the same sums everywhere, whatever happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor import shared_fold, shared_tables
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.rows import EvidenceKey, Remark, StoreError
from sidecar.monitor.shared_fold import Folder
from sidecar.monitor.store import Store
from tests.monitor import making
from validators.sketches import LogHistogram

KEY = EvidenceKey("m", "m:2/new", "m:1/old", "", "error", "p")
LATCH = ("m", "m:2/new", "m:1/old", "", "p")


def key(metric: str = "slow", block: int = 0, output: str = "") -> EvidenceKey:
    return EvidenceKey("m", "m:2/new", "m:1/old", output, metric, "p", block)


@pytest.fixture
def database_url(database_url):
    """One that forgets the latest when its machine loses power: quicker on a slow disk."""
    name = database_url.rpartition("/")[2]
    execute(database_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    return database_url


class Member:
    """One monitor's evidence, and its connection.

    Attributes:
        fails: how its next write goes wrong: ``before`` or ``after`` it was committed.
        halfway: called before its next commit.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.clock = making.Clock()
        self.store = store
        self.name = name
        self.evidence = SharedEvidence(name, self.clock)
        self.evidence.become(name)
        #: What it has counted itself, to compare with.
        self.counted: Counter[str] = Counter()
        self.fails = ""
        self.halfway: Any = None

    def add(self, at: EvidenceKey = KEY, **cells: float) -> None:
        self.evidence.add(at, cells)
        self.counted.update({f"{at.metric} {name}": count for name, count in cells.items()})

    def sketch(self, value: float) -> None:
        made = LogHistogram()
        made.add([value])
        self.evidence.add_sketch(KEY, made)
        self.counted["sketch"] += 1

    @contextmanager
    def writing(self) -> Iterator[Any]:
        fails, self.fails = self.fails, ""
        with type(self.store.database).writing(self.store.database) as connection:
            yield connection
            halfway, self.halfway = self.halfway, None
            if halfway is not None:
                halfway()
            if fails == "before":
                raise StoreError("the connection broke")
        if fails == "after":
            raise StoreError("no answer")

    def share(self) -> bool:
        self.store.database.writing = self.writing  # type: ignore[method-assign]
        try:
            self.evidence.share(self.store)
        except StoreError:
            return False
        finally:
            del self.store.database.writing
            self.fails, self.halfway = "", None  # there was nothing to write
        return True

    def sync(self) -> None:
        assert self.share()
        self.evidence.refresh(self.store)


def sums(evidence: SharedEvidence) -> Counter[str]:
    """Over all keys and blocks, by metric and cell."""
    found: Counter[str] = Counter()
    for each in evidence.all_keys():
        cells = evidence.cells(each)
        found.update({f"{each.metric} {name}": count for name, count in cells.items()})
    if count := evidence.sketch(KEY).count:
        found["sketch"] = count
    return found


def everything(evidence: SharedEvidence) -> dict[EvidenceKey, dict[str, float]]:
    return {each: evidence.cells(each) for each in evidence.all_keys()}


def expected(*members: Member) -> Counter[str]:
    total: Counter[str] = Counter()
    for member in members:
        total.update(member.counted)
    return total


def connect(url: str, timeout_s: float = 5.0) -> Store:
    return Store.connect(StoreConfig(url=url, timeout_s=timeout_s), SystemClock())


@contextmanager
def fleet(url: str, count: int = 3, timeout_s: float = 5.0) -> Iterator[list[Member]]:
    members = [Member(connect(url, timeout_s), f"life-{number}") for number in range(count)]
    try:
        yield members
    finally:
        for member in members:
            member.store.close()


def rounds(members: list[Member], count: int = 2) -> None:
    for _ in range(count):
        for member in members:
            member.sync()


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)  # type: ignore[call-overload]


def agree(*members: Member, gone: Counter[str] | None = None) -> None:
    """All have the same of everything, and it is what was counted."""
    rounds(list(members), 3)
    for member in members:
        found, wanted = sums(member.evidence), expected(*members) + (gone or Counter())
        assert found == pytest.approx(wanted)
        assert everything(member.evidence) == everything(members[0].evidence)


def test_all_have_the_same_sums(database_url):
    with fleet(database_url) as members:
        for number, member in enumerate(members):
            member.add(n=number + 1, k=0.5)
            member.add(key(block=number), n=1)
            member.sketch(float(number))
        agree(*members)
        members[0].add(n=10)
        agree(*members)
        late = Member(members[0].store, "late")
        late.add(n=1)
        late.evidence.refresh(late.store)
        assert late.evidence.cells(KEY) == {"n": 17, "k": 1.5}
        lives = {row.incarnation for row in late.evidence.rows("m")}
        assert lives == {"life-0", "life-1", "life-2", "late"}
        assert late.evidence.rows("other") == []


def test_only_what_is_new_is_read_and_touched(database_url):
    with fleet(database_url, 2) as (one, other):
        for number in range(50):
            one.add(key(f"metric {number}"), n=1)
            one.add(key(f"metric {number}", block=1), n=1)
        rounds([one, other])
        other.evidence.take_touched()
        other.sync()
        assert other.evidence.take_touched() == set()
        one.add(key("metric 7", block=1), n=1)
        one.add(key("new"), n=1)
        read = []
        with_packs = shared_tables.Reader.packs
        try:
            shared_tables.Reader.packs = lambda *args: read.append(with_packs(*args)) or read[-1]
            rounds([one, other], 1)
        finally:
            shared_tables.Reader.packs = with_packs
        assert other.evidence.take_touched() == {key("metric 7", block=1), key("new")}
        assert sorted(row["block"] for row in read[-1]) == [0, 1]
        assert other.evidence.refreshes == 4


def test_old_stretches_are_joined_in_step(database_url):
    with fleet(database_url) as members:
        for block in range(90):
            member = members[block % 3]
            member.add(key(block=block), n=1)
            member.add(key("other", block=block // 2), n=1, k=0.25)
            member.sync()
        members[1].add(key(block=3), n=5)  # late pairs of a stretch that is joined long since
        agree(*members)
        blocks = [each.block for each in members[0].evidence.all_keys() if each.metric == "slow"]
        assert len(blocks) < 50
        members[0].clock.advance(2 * shared_tables.EMPTY_KEPT_S)
        with psycopg.connect(database_url) as connection:
            before = connection.execute("SELECT count(*) FROM packs").fetchone()[0]
            members[0].add(n=1)
            members[0].sync()
            after = connection.execute("SELECT count(*) FROM packs").fetchone()[0]
        assert after < before, "packs that are empty for long are removed"
        agree(*members)


def test_what_all_write_is_merged(database_url):
    with fleet(database_url) as members:
        for number, member in enumerate(members):
            remark = Remark({"max_abs": number}, {"sqnr_db": -number}, "first" if number else "")
            member.evidence.remark(key(""), remark)
            member.evidence.note_certificate(LATCH, 1.0 + number, certified=number == 1)
        rounds(members)
        for member in members:
            member.evidence._reading.rest_at_s = 0  # as if five seconds were over
        rounds(members)
        for member in members:
            found = member.evidence.remarks(key(""))
            assert (found.highest, found.lowest) == ({"max_abs": 2}, {"sqnr_db": -2})
            assert found.problem == "first"
            assert member.evidence.certificate(LATCH).best_log_e == 3.0
            assert member.evidence.certificate(LATCH).certified_ns == 10**9
        [row] = members[0].store.certificates()
        assert (row.best_log_e, row.certified_ns) == (3.0, 10**9)


# --- what can happen to a database ----------------------------------------------------------------


def test_a_database_that_was_emptied_is_filled_again(database_url):
    with fleet(database_url) as members:
        for member in members:
            member.add(n=1)
            member.add(key(block=20), n=1)
            member.sketch(1.0)
            member.evidence.note_certificate(LATCH, 1.0, certified=False)
        agree(*members)
        tables = "packs, lives, sketches, certificates, remarks"
        execute(database_url, f"TRUNCATE {tables}")
        agree(*members)
        assert len(members[0].store.certificates()) == 1
        assert [member.store.generation for member in members] == [1, 1, 1]
        execute(database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        for member in members:
            member.add(n=1)
            member.share()  # which finds that there are no tables
        agree(*members)


def test_a_database_restored_from_a_backup_gets_what_it_lacks(database_url):
    with fleet(database_url) as members:
        for member in members:
            for block in range(0, 30, 2):
                member.add(key(block=block), n=1)
            member.sketch(1.0)
        agree(*members)
        for table in ("packs", "lives", "sketches"):
            execute(database_url, f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")
        for member in members[:2]:  # the third writes nothing more
            for block in range(30, 60):
                member.add(key(block=block), n=1)
                member.sync()
        agree(*members)
        for table in ("packs", "lives", "sketches"):
            restore = f"INSERT INTO {table} SELECT * FROM kept_{table}"
            execute(database_url, f"TRUNCATE {table}", restore)
        members[0].add(n=1)
        agree(*members)
        late = Member(members[0].store, "late")
        late.evidence.refresh(late.store)
        assert sums(late.evidence) == expected(*members)


def test_who_has_not_read_for_long_reads_everything_again(database_url, monkeypatch):
    with fleet(database_url, 2) as (one, other):
        for block in range(3):
            one.add(key(block=block), n=1)
        agree(one, other)
        monkeypatch.setattr(shared_tables, "EMPTY_KEPT_S", 0.0)
        one.add(key(block=60), n=1)
        one.sync()
        one.clock.advance(1)
        one.add(n=1)
        one.sync()
        monkeypatch.setattr(shared_tables, "REREAD_S", 0.0)  # what was purged it has not seen go
        agree(one, other)


# --- who was taken for dead -----------------------------------------------------------------------


@pytest.fixture
def all_dead(monkeypatch):
    monkeypatch.setattr(shared_fold, "SILENT_S", -10.0)


def folder(member: Member, own: str = "nobody") -> Folder:
    return Folder(own, member.evidence.stretch, making.Clock())


def test_the_dead_are_folded_and_nothing_is_lost(database_url, all_dead):
    with fleet(database_url) as members:
        for number, member in enumerate(members):
            for block in range(25):
                member.add(key(block=block), n=1, k=0.5)
            member.sketch(number)
        agree(*members)
        gone = expected(*members[1:])
        found = [folder(members[0], "life-0").fold(members[0].store) for _ in range(3)]
        assert found == ["life-1", "life-2", None]
        left = members[0]
        agree(left, gone=gone)
        assert {row.incarnation for row in left.evidence.rows("m")} == {"life-0", "past"}
        late = Member(left.store, "late")
        late.evidence.refresh(late.store)
        assert everything(late.evidence) == everything(left.evidence)


def test_who_lives_is_not_folded(database_url):
    with fleet(database_url, 2) as members:
        agree(*members)
        members[0].add(n=1)
        members[0].sync()
        assert folder(members[0]).fold(members[0].store) is None, "it has only just begun"
        execute(database_url, "UPDATE lives SET since_ns = 0")
        execute(
            database_url, "INSERT INTO replicas VALUES ('life-0',"
            " (extract(epoch FROM clock_timestamp()) * 1e9)::bigint, '{}')",
        )  # fmt: skip
        assert folder(members[0]).fold(members[0].store) is None
        refused = folder(members[0])
        refused.may_fold = lambda _: False
        execute(database_url, "DELETE FROM replicas")
        assert refused.fold(members[0].store) is None
        assert folder(members[0]).fold(members[0].store) == "life-0"


@pytest.mark.parametrize("doubt", ["", "before", "after"])
def test_who_was_folded_alive_goes_on_under_another_name(database_url, all_dead, doubt, caplog):
    with fleet(database_url, 2) as (one, other):
        one.add(n=5, k=0.3)
        one.add(key(block=1), n=5)
        one.sketch(1.0)
        agree(one, other)
        one.add(n=2, k=0.1)
        one.sketch(2.0)
        if doubt:
            one.fails = doubt
            assert not one.share()
        assert folder(other, "life-1").fold(other.store) == "life-0"
        one.add(n=1)
        agree(one, other)
        assert "life-0 was taken for dead and goes on counting as life-0+2" in caplog.text
        assert one.evidence.own_cells(KEY) == pytest.approx({"n": 8, "k": 0.4})
        one.add(n=1)
        assert folder(other, "life-1").fold(other.store) == "life-0+2"
        agree(one, other)


# --- anything, in any order -----------------------------------------------------------------------

_STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 2), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("share"), st.integers(0, 2), st.sampled_from(["", "", "before", "after"])),
    st.tuples(st.just("read"), st.integers(0, 2)),
    st.tuples(st.just("between"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("fold"), st.integers(0, 2)),
    st.tuples(st.just("end"), st.integers(0, 2)),
)


@pytest.fixture
def stores(database_url):
    opened = [connect(database_url) for _ in range(3)]
    yield opened
    for store in opened:
        store.close()


@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=st.lists(_STEP, max_size=25))
def test_nothing_is_lost_or_counted_twice(stores, database_url, all_dead, steps):
    """Commits that come late, that fail, that nobody hears of; lives that end, or are folded."""
    for table in ("packs", "lives", "sketches"):
        execute(database_url, f"DELETE FROM {table}")
    names = iter(range(10**6))
    members = [Member(store, f"life-{next(names)}") for store in stores]
    gone: Counter[str] = Counter()
    latest = 0
    for kind, who, *how in steps:
        member = members[who]
        if kind == "add":
            latest += 7 * how[0]
            member.add(key(block=latest), n=1, k=0.5)
            member.add(key("other", block=max(0, latest - 9)), n=1)
            if how[1]:
                member.sketch(1.0)
        elif kind == "share":
            member.fails = how[0]
            member.share()
        elif kind == "read":
            member.evidence.refresh(member.store)
        elif kind == "between":  # another one reads before this one's commit
            other = members[how[0]]
            if other is not member:
                member.halfway = lambda o=other: o.evidence.refresh(o.store)
                member.share()
                other.evidence.refresh(other.store)
        elif kind == "fold":
            folder(member).fold(member.store)
        elif kind == "end" and member.share():
            gone += member.counted
            members[who] = Member(member.store, f"life-{next(names)}")
    agree(*members, gone=gone)
