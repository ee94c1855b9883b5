"""A few replicas on a real PostgreSQL, with all that ships, beside the same pairs simulated."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.monitor import harms
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.pool_side import PoolSide
from sidecar.monitor.rounds import JOIN, SPREAD, Moment
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from sidecar.monitor.version_blocks import BlockBets, PairIndex, add_cells
from tests.benchmarks.fleet_runs import Pairs, fleet, log_es
from tests.benchmarks.tools import Row
from tests.monitor import making
from tests.support.postgres import PostgresServer
from validators.sequential import checks
from validators.sequential.paired import BLOCK

REPLICAS, SECONDS, RATE = 4, 20, 40
KEY = EvidenceKey("m", "m:2/new", "m:1/old", "", harms.ERROR, "p")


class First:
    """Always leads."""

    fence = 1

    def guard(self, connection: sa.Connection, fence: int | None = None) -> None:
        assert connection is not None
        assert fence == self.fence


class Follows(First):
    fence = 0


class Replica:
    def __init__(self, url: str, name: str, clock: making.Clock, *, leads: bool) -> None:
        self.store = Store.connect(StoreConfig(url=url), SystemClock(), name)
        self.evidence = SharedEvidence(name, clock)
        self.evidence.become(name)
        self.side = PoolSide(self.evidence, First() if leads else Follows(), clock, sync_s=1.0)
        self.bets, self.index = BlockBets(self.evidence), PairIndex(self.evidence)

    def count(self, new: np.ndarray, previous: np.ndarray, seen_ns: list[int]) -> None:
        blocks = self.index.take(KEY, len(new)) // BLOCK
        new, previous = new.astype(np.float64), previous.astype(np.float64)
        add_cells(self.evidence, [KEY], new[:, None], previous[:, None], blocks)
        self.bets.add(KEY, (new - previous).tolist(), blocks.tolist(), [20], seen_ns=seen_ns)

    def tell(self) -> None:
        self.evidence.share(self.store)
        self.side.hand_over(self.store)

    def join(self) -> None:
        self.side.join(self.store)

    def read(self) -> None:
        self.evidence.refresh(self.store)


def _moments(phases_s: list[float]) -> list[tuple[float, Moment, int]]:
    """As ``rounds.py`` has them, the first one leading: seconds, what, who."""
    found = []
    for second in range(SECONDS + 4):
        found.append((second + JOIN, Moment.JOIN, 0))
        for replica, phase_s in enumerate(phases_s):
            found.append((second + phase_s, Moment.TELL, replica))
            found.append((second + JOIN + phase_s + 1e-6, Moment.READ, replica))
    return sorted(found, key=lambda one: (one[0], one[2]))


@contextmanager
def server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = PostgresServer(Path(folder))
        made.start()
        try:
            yield made
        finally:
            made.stop()


def same_as_simulated() -> list[Row]:
    """Errors 0 → 2 %."""
    rng = np.random.default_rng(63)
    times_s = np.sort(rng.random(SECONDS * RATE) * SECONDS)
    places = rng.integers(0, REPLICAS, len(times_s))
    new = rng.random(len(times_s)) < 0.02
    previous = np.zeros_like(new)
    phases_s = np.linspace(0.0, SPREAD, REPLICAS)
    clock = making.Clock()
    start_ns = clock.now_ns()
    seen_ns = start_ns + (times_s * 1e9).astype(np.int64)
    with server() as database:
        url = database.make("fleet")
        members = [Replica(url, f"r{n}", clock, leads=n == 0) for n in range(REPLICAS)]
        done = 0.0
        for now_s, moment, at in _moments(phases_s.tolist()):
            clock.advance(now_s - done)
            done = now_s
            member = members[at]
            if moment is Moment.TELL:
                before = now_s - 1.0 if now_s >= 1.0 else -1.0
                mine = np.flatnonzero((places == at) & (times_s > before) & (times_s <= now_s))
                if len(mine):
                    member.count(new[mine], previous[mine], seen_ns[mine].tolist())
                member.tell()
            elif moment is Moment.JOIN:
                member.join()
            else:
                member.read()
        log_e, pairs, blocks = judged(members[0].evidence)
        for member in members:
            member.store.close()
    only = np.stack([new, previous])[:, None, :, None]
    simulated = Pairs(times_s, places, only[0], only[1])
    known = fleet(simulated, phases_s)
    expected = float(log_es(simulated, known, np.array([SECONDS + 10.0]))[0, 0])
    return [
        Row(f"{REPLICAS} replicas on PostgreSQL, log evidence of {pairs} pairs after {SECONDS} s",
            f"{expected:.1f} ± 5 %, as simulated", f"{log_e:.1f}",
            abs(log_e - expected) <= 0.05 * expected and pairs == len(times_s),
            f"{blocks} blocks, simulated {len(known.blocks)}")
    ]  # fmt: skip


def judged(evidence: SharedEvidence) -> tuple[float, int, int]:
    """What the check says: log E, pairs, blocks."""

    def counts(key: EvidenceKey, names: tuple[str, ...]) -> dict[int, list[float]]:
        return {
            each.block: checks.ordered(evidence.cells(each), names)
            for each in evidence.all_keys()
            if replace(each, block=0) == key
        }

    pairs = counts(KEY, checks.CELLS)
    signs = counts(replace(KEY, metric="error/20"), checks.SIGN_CELLS)
    found = checks.judge_error(checks.Harm("error"), pairs, signs)
    return found.log_e, found.pairs, round(sum(map(sum, signs.values())))
