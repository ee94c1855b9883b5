"""Blocks of pairs over all replicas: what waits, what is joined, and by whom.

At each exchange of counts a replica writes its lumps (``pool_rests.py``) as one numbered row of
``rests``. The leader takes the rows of all replicas, in one transaction: they go, what became whole
blocks is counted, and what is left stands in ``pools`` for whoever leads next. So every pair is in
exactly one place: a lump in a replica's memory, a row, what is left, or a block.

**Order.** Lumps are joined by the time at which they were seen, and not before all replicas that
take part have told of that time (at most two exchanges are waited for): what happened together is
in one block. A lump that comes later than that is joined when it comes. Times and numbers decide,
never what was counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.monitor import harms
from sidecar.monitor.pool_rests import SLICE_NS, Lump, Whole, join
from sidecar.monitor.rows import EvidenceKey

#: Exchanges that are waited for, until a replica has told of a time.
HOLD = 2
#: A replica that has nothing to hand over says so as often, and then no more.
QUIET_ROUNDS = 3
#: Of a replica that is silent for so long it is forgotten how far its rows were taken (it gives up
#: a row that it could not write for an hour).
_FORGOTTEN_NS = 24 * 3600 * 10**9


@dataclass(slots=True)
class Pooled:
    """One series: what waits for others of its time, and what is left of what was joined.

    Attributes:
        pairs: that are in whole blocks, since ever.
    """

    waiting: list[Lump] = field(default_factory=list)
    left: Lump | None = None
    pairs: int = 0

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        left = None if self.left is None else self.left.to_plain()
        waiting = [lump.to_plain() for lump in self.waiting]
        return {"waiting": waiting, "left": left, "pairs": self.pairs}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Pooled:
        """The inverse of ``to_plain``; ValueError, TypeError or KeyError for anything else."""
        left = None if plain["left"] is None else Lump.from_plain(plain["left"])
        return cls([Lump.from_plain(one) for one in plain["waiting"]], left, int(plain["pairs"]))


@dataclass(frozen=True, slots=True)
class Row:
    """What one replica handed over at once.

    Attributes:
        life: a name of its own for each process; ``seq`` counts its rows.
        upto: the slot it was written in: all that was seen before was handed over.
        rests: series → lumps.
    """

    life: str
    seq: int
    upto: int
    rests: Mapping[EvidenceKey, list[Lump]]


@dataclass(slots=True)
class Pool:
    """All series, in memory. ``changed``, ``told``: what is another one since it was read.

    Attributes:
        seen: life → (number of its latest row that was taken, its ``upto``).
    """

    series: dict[EvidenceKey, Pooled] = field(default_factory=dict)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    changed: set[EvidenceKey] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def take(self, row: Row, now_ns: int) -> None:
        """Take a row in; one that was taken already (its answer was lost) is nothing."""
        seq, upto = self.seen.get(row.life, (0, 0))
        if row.seq <= seq:
            return
        # The clock of another machine may be ahead: nothing was seen later than now.
        now = now_ns // SLICE_NS
        self.seen[row.life] = row.seq, max(upto, min(row.upto, now))
        self.told.add(row.life)
        for key, lumps in row.rests.items():
            for lump in lumps:
                lump.slot = min(lump.slot, now)
            self.series.setdefault(key, Pooled()).waiting += lumps
            self.changed.add(key)

    def join(self, now_ns: int, hold_ns: int) -> list[tuple[EvidenceKey, Whole]]:
        """Join what need not wait any longer; returns whole blocks.

        Args:
            hold_ns: so long replicas are waited for that have not told of a time yet.
        """
        longest = (now_ns - hold_ns) // SLICE_NS
        before = min((upto for _, upto in self.seen.values() if upto >= longest), default=longest)
        found = []
        for key, pooled in self.series.items():
            ready = [lump for lump in pooled.waiting if lump.slot < before]
            if not ready:
                continue
            pooled.waiting = [lump for lump in pooled.waiting if lump.slot >= before]
            ready.sort(key=_slot)  # stable: within a slot in the order of rows
            whole_slots = not harms.is_time(key.metric)
            whole, pooled.left = join(pooled.left, ready, whole_slots=whole_slots)
            pooled.pairs += sum(pairs for _, pairs, _ in whole)
            self.changed.add(key)
            found += [(key, one) for one in whole]
        return found

    def forget(self, now_ns: int) -> list[str]:
        """Lives that have been silent for a day, which are forgotten."""
        oldest = (now_ns - _FORGOTTEN_NS) // SLICE_NS
        gone = [life for life, (_, upto) in self.seen.items() if upto < oldest]
        for life in gone:
            del self.seen[life]
        return gone


def _slot(lump: Lump) -> int:
    return lump.slot


def pairs_in(pooled: Iterable[Pooled]) -> int:
    """Pairs that are in no block yet."""
    return sum(
        sum(lump.pairs for lump in one.waiting) + (one.left.pairs if one.left else 0)
        for one in pooled
    )
