"""Bets by blocks of pairs: who was worse in each 20, 100, 500 of them (see ``harms.by``).

Noise that stays for a while moves many pairs at once, and drives a bet on single pairs to false
alarms. A block of pairs is one bet, on the sign of what its pairs add up to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.rows import EvidenceKey
from sidecar.runtimes.base import Array

#: Sums nearer to 0 than this are 0: shares of rows add up to it with rounding only.
_NOTHING = 1e-9


class BlockBets:
    """Joins pairs to blocks, for one thread.

    The blocks in progress are kept in memory, two numbers a key and length, and are lost at a
    restart: at most 499 pairs of the longest one, whichever side they would have been for.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._open: dict[tuple[EvidenceKey, int], tuple[int, float]] = {}

    def add(
        self, key: EvidenceKey, differences: Array, blocks: Array,
        lengths: Sequence[int] = harms.BLOCK_LENGTHS,
    ) -> None:  # fmt: skip
        """Take the next pairs of a key.

        Args:
            key: of the metric that is counted pair by pair; its ``block`` does not matter.
            differences: harm of the new version minus that of the previous one, float64 [n].
            blocks: int64 [n], the stretch of the pair's life that each is counted under; a bet
                belongs to that of its last pair.
            lengths: pairs of a block, each counted apart.
        """
        for length in lengths:
            place = replace(key, block=0), length
            count, total = self._open.get(place, (0, 0.0))
            at = 0
            while at < len(differences):
                end = min(at + length - count, len(differences))
                total += float(np.sum(differences[at:end]))
                count += end - at
                at = end
                if count == length:
                    self._bet(key, length, total, int(blocks[at - 1]))
                    count, total = 0, 0.0
            self._open[place] = count, total

    def add_capped(self, key: EvidenceKey, harmed: Array, blocks: Array, length: int) -> None:
        """The same for what has a budget instead of another side.

        A block counts X = min(1, the sum of its pairs' ``harmed``) to n10 and 1 − X to n00.
        """
        place = replace(key, block=0), -length
        count, total = self._open.get(place, (0, 0.0))
        for value, block in zip(harmed.tolist(), blocks.tolist(), strict=True):
            count, total = count + 1, total + value
            if count == length:
                capped = min(1.0, total)
                cells = {"n11": 0.0, "n10": capped, "n01": 0.0, "n00": 1.0 - capped}
                by_blocks = replace(key, metric=harms.by(key.metric, length), block=block)
                self._evidence.add(by_blocks, cells)
                count, total = 0, 0.0
        self._open[place] = count, total

    def _bet(self, key: EvidenceKey, length: int, total: float, block: int) -> None:
        cell = "n00" if abs(total) < _NOTHING else ("n10" if total > 0 else "n01")
        cells = {"n11": 0.0, "n10": 0.0, "n01": 0.0, "n00": 0.0, cell: 1.0}
        by_blocks = replace(key, metric=harms.by(key.metric, length), block=block)
        self._evidence.add(by_blocks, cells)


class PairIndex:
    """Numbers the pairs of a key, over all lives."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._next: dict[EvidenceKey, int] = {}

    def take(self, key: EvidenceKey, count: int) -> Array:
        """The numbers of the next so many pairs, int64 [count]; a pair's block is its number //
        ``paired.BLOCK``.

        ``key``: whose cells count all pairs, whatever its ``block``.
        """
        key = replace(key, block=0)
        if key not in self._next:  # earlier lives' pairs come first
            self._next[key] = sum(
                round(sum(self._evidence.cells(each).values()))
                for each in self._evidence.all_keys()
                if replace(each, block=0) == key
            )
        start = self._next[key]
        self._next[key] = start + count
        return np.arange(start, start + count, dtype=np.int64)
