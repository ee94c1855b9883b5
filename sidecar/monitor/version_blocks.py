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
from validators.sequential.paired import CELLS

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
        self, key: EvidenceKey, differences: Sequence[float], blocks: Sequence[int],
        lengths: Sequence[int] = harms.BLOCK_LENGTHS,
    ) -> None:  # fmt: skip
        """Take the next pairs of a key.

        Args:
            key: of the metric that is counted pair by pair, with block 0.
            differences: harm of the new version minus that of the previous one, [n].
            blocks: [n], the stretch of the pair's life that each is counted under; a bet belongs to
                that of its last pair.
            lengths: pairs of a block, each counted apart.
        """
        # Plain numbers: of the one or the few pairs that a batch has of a rarely used model, numpy
        # would cost ten times as much.
        for length in lengths:
            count, total = self._open.get((key, length), (0, 0.0))
            for value, block in zip(differences, blocks, strict=True):
                count, total = count + 1, total + value
                if count == length:
                    cell = "n00" if abs(total) < _NOTHING else ("n10" if total > 0 else "n01")
                    self._bet(key, length, block, {cell: 1.0})
                    count, total = 0, 0.0
            self._open[key, length] = count, total

    def add_capped(
        self, key: EvidenceKey, harmed: Sequence[float], blocks: Sequence[int], length: int
    ) -> None:
        """The same for what has a budget instead of another side.

        A block counts X = min(1, the sum of its pairs' ``harmed``) to n10 and 1 − X to n00.
        """
        count, total = self._open.get((key, -length), (0, 0.0))
        for value, block in zip(harmed, blocks, strict=True):
            count, total = count + 1, total + value
            if count == length:
                capped = min(1.0, total)
                self._bet(key, length, block, {"n10": capped, "n00": 1.0 - capped})
                count, total = 0, 0.0
        self._open[key, -length] = count, total

    def _bet(self, key: EvidenceKey, length: int, block: int, cells: dict[str, float]) -> None:
        by_blocks = replace(key, metric=harms.by(key.metric, length), block=block)
        self._evidence.add(by_blocks, {**_NO_CELLS, **cells})


_NO_CELLS = dict.fromkeys(CELLS, 0.0)


def add_cells(
    evidence: Evidence, keys: Sequence[EvidenceKey], new: Array, previous: Array, blocks: Array
) -> None:
    """Count pairs by their stretch, under several keys at once.

    Args:
        keys: [m], with block 0.
        new, previous: harms in [0, 1], float64 [n, m].
        blocks: int64 [n], in order.
    """
    # As ``paired.split`` does it, of all columns in one go.
    both = np.minimum(new, previous)
    parts = np.stack([both, new - both, previous - both, 1 - np.maximum(new, previous)], axis=-1)
    for block, where in spans(blocks):
        for key, row in zip(keys, parts[where].sum(axis=0).tolist(), strict=True):
            evidence.add(at_block(key, block), dict(zip(CELLS, row, strict=True)))


def spans(blocks: Array) -> list[tuple[int, slice]]:
    """Where each stretch lies in ``blocks`` (int64, in order)."""
    if not len(blocks):
        return []
    first, last = int(blocks[0]), int(blocks[-1])
    if first == last:
        return [(first, slice(None))]
    begins = np.flatnonzero(np.diff(blocks, prepend=blocks[0] - 1)).tolist()
    ends = [*begins[1:], len(blocks)]
    return [(int(blocks[a]), slice(a, b)) for a, b in zip(begins, ends, strict=True)]


def at_block(key: EvidenceKey, block: int) -> EvidenceKey:
    """The same key for another stretch (``dataclasses.replace`` takes ten times as long)."""
    return EvidenceKey(
        key.model, key.candidate, key.baseline, key.output, key.metric, key.policy, block
    )


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
                if at_block(each, 0) == key
            )
        start = self._next[key]
        self._next[key] = start + count
        return np.arange(start, start + count, dtype=np.int64)
