"""Evidence of several monitors on a real PostgreSQL: the same sums everywhere, whatever happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from tests.monitor import making

KEY = EvidenceKey("m", "m:2/new", "m:1/old", "", "error", "p")


def settings(url: str, timeout_s: float = 5.0) -> StoreConfig:
    return StoreConfig(url=url, timeout_s=timeout_s)


class Member:
    """One monitor's evidence, and its connection."""

    def __init__(self, url: str, name: str, timeout_s: float = 5.0) -> None:
        self.clock = making.Clock()
        self.store = Store.connect(settings(url, timeout_s), SystemClock(), name)
        self.evidence = SharedEvidence(name, self.clock)
        self.evidence.become(name)
        #: What it has counted itself, to compare with.
        self.counted: Counter[str] = Counter()

    def add(self, key: EvidenceKey = KEY, **cells: float) -> None:
        self.evidence.add(key, cells)
        self.counted.update({f"{key.metric} {name}": count for name, count in cells.items()})

    def sync(self) -> None:
        self.evidence.share(self.store)
        self.evidence.refresh(self.store)


def sums(evidence: SharedEvidence) -> Counter[str]:
    """Over all keys and blocks, by metric and cell."""
    found: Counter[str] = Counter()
    for key in evidence.all_keys():
        cells = evidence.cells(key)
        found.update({f"{key.metric} {name}": count for name, count in cells.items()})
    return found


def expected(*members: Member) -> Counter[str]:
    total: Counter[str] = Counter()
    for member in members:
        total.update(member.counted)
    return total


@contextmanager
def fleet(url: str, count: int = 3, timeout_s: float = 5.0) -> Iterator[list[Member]]:
    members = [Member(url, f"life-{number}", timeout_s) for number in range(count)]
    try:
        yield members
    finally:
        for member in members:
            member.store.close()


def rounds(members: list[Member], count: int = 2) -> None:
    for _ in range(count):
        for member in members:
            member.sync()


def test_all_have_the_same_sums(database_url):
    with fleet(database_url) as members:
        for number, member in enumerate(members):
            member.add(n=number + 1, k=0.5)
            member.add(making_key(block=number), n=1)
        rounds(members)
        for member in members:
            assert sums(member.evidence) == expected(*members)
        members[0].add(n=10)
        rounds(members)
        rounds(members)
        for member in members:
            assert member.evidence.cells(KEY) == {"n": 16, "k": 1.5}
            assert sums(member.evidence) == expected(*members)
        with closing(Store.connect(settings(database_url), SystemClock(), "late")) as store:
            late = SharedEvidence("late", making.Clock())
            late.become("late")
            late.add(KEY, {"n": 1})
            late.refresh(store)
            assert late.cells(KEY) == {"n": 17, "k": 1.5}


def making_key(metric: str = "slow", block: int = 0, output: str = "") -> EvidenceKey:
    return EvidenceKey("m", "m:2/new", "m:1/old", output, metric, "p", block)
