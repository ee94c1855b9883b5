"""Pairs that wait to be joined with those of other replicas to blocks.

A bet by blocks is on who was worse in 20 pairs (``version_blocks.py``). Of 32 replicas each would
hold up to 19 pairs that are in no block yet, 300 pairs together, and a regression would be seen
that much later. So where a store is shared, pairs are not kept until a block is full: they go into
*lumps*, and those are handed over (``pool.py``) for the leader to join.

A lump is what one replica saw within a tenth of a second, and what its pairs add up to. So what
happened at the same time stays together, wherever it was seen: one event that makes several pairs
(a retry without an id, a fault that all replicas share) is in one block, or in two.

Blocks end between two slices, except of times: there a copy of a request tells something new, and
the calibration says what stays for a while. Longer blocks would be fewer bets.

Where a replica fills a whole block within such a slice it counts that by itself, as it does where
nobody takes its lumps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.monitor import harms
from sidecar.monitor.rows import EvidenceKey
from validators.sequential.paired import CELLS

#: Pairs seen within so much time by one replica are one lump.
SLICE_NS = 100_000_000
#: Length of the blocks that are joined over replicas. Longer ones are asked for by noise that hangs
#: together within one replica, which only blocks of one replica undo.
POOLED = harms.BLOCK_LENGTHS[0]
#: Lumps of one series that wait in memory: a minute of them. Then the oldest become blocks here.
LUMPS_MAX = 600
#: Sums nearer to 0 than this are 0: shares of rows add up to it with rounding only.
_NOTHING = 1e-9
_NO_CELLS = dict.fromkeys(CELLS, 0.0)


@dataclass(slots=True)
class Lump:
    """Pairs that stay together.

    Attributes:
        slot: when they were seen, in slices of ``SLICE_NS`` since the Unix epoch.
        block: the stretch of the pair's life that the latest of them is counted under.
        pairs: how many.
        total: what they add up to: harm of the new version less that of the previous one, or flips.
    """

    slot: int
    block: int
    pairs: int = 0
    total: float = 0.0

    def take(self, block: int, pairs: int, total: float) -> None:
        """Add more pairs, which came after these."""
        self.block = max(self.block, block)
        self.pairs += pairs
        self.total += total

    def to_plain(self) -> list[Any]:
        """As JSON values."""
        return [self.slot, self.block, self.pairs, self.total]

    @classmethod
    def from_plain(cls, plain: Any) -> Lump:
        """The inverse of ``to_plain``."""
        slot, block, pairs, total = plain
        return cls(int(slot), int(block), int(pairs), float(total))


def bet(metric: str, length: int, pairs: int, total: float) -> dict[str, float]:
    """The cells of one block of at least ``length`` pairs.

    Flips: X = min(1, their sum) goes to ``n10``, and pairs/length − X to ``n00``. For w = pairs /
    length ≥ 1, E[X] ≤ w·b and X ≤ 1 the factor (θ/b)^X ((1−θ)/(1−b))^(w−X) has a mean of at most 1:
    with R = (1−b)/(1−θ) it is at most (1 + w(R−1)) / R^w, which Bernoulli's inequality bounds.
    """
    if harms.is_capped(metric):
        capped = min(1.0, total)
        return {**_NO_CELLS, "n10": capped, "n00": pairs / length - capped}
    cell = "n00" if abs(total) < _NOTHING else ("n10" if total > 0 else "n01")
    return {**_NO_CELLS, cell: 1.0}


#: A whole block: the stretch it is counted under, its pairs, and what they add up to.
Whole = tuple[int, int, float]


class Rests:
    """Lumps of every series that wait to be handed over; any thread.

    A series is an evidence key with the metric's name by blocks (``error/20``) and block 0.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[EvidenceKey, list[Lump]] = {}

    def add(
        self, series: EvidenceKey, values: Iterable[float], blocks: Iterable[int],
        seen_ns: Iterable[int],
    ) -> list[Whole]:  # fmt: skip
        """Take pairs in; returns whole blocks that are to be counted by this replica itself.

        Args:
            values: what each pair adds to the sum, [n].
            blocks: [n], the stretch that each is counted under.
            seen_ns: [n], wall clock.
        """
        whole: list[Whole] = []
        with self._lock:
            lumps = self._waiting.setdefault(series, [])
            for value, block, at_ns in zip(values, blocks, seen_ns, strict=True):
                slot = at_ns // SLICE_NS
                if not lumps or lumps[-1].slot != slot:
                    lumps.append(Lump(slot, block))
                last = lumps[-1]
                last.take(block, 1, value)
                if last.pairs >= POOLED:
                    whole.append((last.block, last.pairs, last.total))
                    lumps.pop()
            while len(lumps) > LUMPS_MAX:
                first = lumps.pop(0)
                first.take(lumps[0].block, lumps[0].pairs, lumps[0].total)
                lumps[0] = first
                if first.pairs >= POOLED:
                    whole.append((first.block, first.pairs, first.total))
                    lumps.pop(0)
        return whole

    def take(self) -> dict[EvidenceKey, list[Lump]]:
        """All that waits, which is now the caller's."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        return {series: lumps for series, lumps in taken.items() if lumps}

    def __bool__(self) -> bool:
        with self._lock:
            return any(self._waiting.values())

    def pairs(self, series: EvidenceKey) -> int:
        """How many pairs of a series wait."""
        with self._lock:
            return sum(lump.pairs for lump in self._waiting.get(series, ()))


def to_plain(rests: dict[EvidenceKey, list[Lump]]) -> list[Any]:
    """Lumps by series as JSON values."""
    return [
        [
            series.model, series.candidate, series.baseline, series.output, series.metric,
            series.policy, [lump.to_plain() for lump in lumps],
        ]
        for series, lumps in rests.items()
    ]  # fmt: skip


def from_plain(plain: Any) -> Iterator[tuple[EvidenceKey, list[Lump]]]:
    """The inverse of ``to_plain``."""
    for model, candidate, baseline, output, metric, policy, lumps in plain:
        series = EvidenceKey(model, candidate, baseline, output, metric, policy)
        yield series, [Lump.from_plain(lump) for lump in lumps]


def join(
    first: Lump | None, lumps: Sequence[Lump], *, whole_slots: bool = True
) -> tuple[list[Whole], Lump | None]:
    """Join lumps in their order to blocks of at least ``POOLED`` pairs.

    Where a block ends is decided by times and numbers of pairs alone, never by what was seen.

    Args:
        first: what is left of earlier ones.
        whole_slots: a block ends between two slots: what was seen at the same time, wherever,
            stays together.

    Returns:
        Whole blocks, and what is left.
    """
    whole: list[Whole] = []
    left = first
    for lump, later in zip(lumps, [*lumps[1:], None], strict=True):
        if left is None:
            left = Lump(lump.slot, lump.block)
        left.take(lump.block, lump.pairs, lump.total)
        ends = not whole_slots or later is None or later.slot != lump.slot
        if left.pairs >= POOLED and ends:
            whole.append((left.block, left.pairs, left.total))
            left = None
    return whole, left
