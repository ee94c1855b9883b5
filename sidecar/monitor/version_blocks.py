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
from sidecar.monitor.pool_rests import POOLED, bet
from sidecar.monitor.rows import EvidenceKey
from sidecar.runtimes.base import Array
from validators.sequential.paired import CELLS


class BlockBets:
    """Joins pairs to blocks, for one thread.

    The blocks in progress are kept in memory, two numbers a key and length, and are lost at a
    restart: at most 499 pairs of the longest one, whichever side they would have been for. Those
    of the shortest are handed over, where other replicas have some too (``Evidence.rests``).
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._open: dict[tuple[EvidenceKey, int], tuple[int, float]] = {}

    def add(
        self, key: EvidenceKey, differences: Sequence[float], blocks: Sequence[int],
        lengths: Sequence[int] = harms.BLOCK_LENGTHS, *, seen_ns: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Take the next pairs of a key.

        Args:
            key: of the metric that is counted pair by pair, with block 0. Of ``flip`` a block
                counts X = min(1, the sum) to n10 and 1 − X to n00, of others whose side it is on.
            differences: harm of the new version minus that of the previous one, [n].
            blocks: [n], the stretch of the pair's life that each is counted under; a bet belongs to
                that of its last pair.
            lengths: pairs of a block, each counted apart.
            seen_ns: [n], wall clock, when the requests were seen; default: just now, all together.
        """
        # Plain numbers: of the one or the few pairs that a batch has of a rarely used model, numpy
        # would cost ten times as much.
        rests = self._evidence.rests
        for length in lengths:
            if rests is not None and length == POOLED:
                times = [self._evidence.now_ns()] * len(blocks) if seen_ns is None else seen_ns
                series = _by_blocks(key, length)
                for block, pairs, total in rests.add(series, differences, blocks, times):
                    self._bet(key, length, block, pairs, total)
                continue
            count, total = self._open.get((key, length), (0, 0.0))
            for value, block in zip(differences, blocks, strict=True):
                count, total = count + 1, total + value
                if count == length:
                    self._bet(key, length, block, count, total)
                    count, total = 0, 0.0
            self._open[key, length] = count, total

    def _bet(self, key: EvidenceKey, length: int, block: int, pairs: int, total: float) -> None:
        by_blocks = _by_blocks(key, length, block)
        self._evidence.add(by_blocks, bet(key.metric, length, pairs, total))


def _by_blocks(key: EvidenceKey, length: int, block: int = 0) -> EvidenceKey:
    return replace(key, metric=harms.by(key.metric, length), block=block)


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
    """Numbers the pairs of a key, over all lives and replicas."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._next: dict[EvidenceKey, tuple[int, int]] = {}

    def take(self, key: EvidenceKey, count: int) -> Array:
        """The numbers of the next so many pairs, int64 [count]; a pair's block is its number //
        ``paired.BLOCK``.

        Earlier lives' pairs come first, and those of other replicas as far as they were read: the
        same number may be given out by several replicas, and none goes back. That does no harm: a
        start is for all pairs from some number on, and a pair has its number before anybody knows
        what became of it.

        ``key``: whose cells count all pairs, whatever its ``block``.
        """
        key = replace(key, block=0)
        refreshes = self._evidence.refreshes
        start, seen = self._next.get(key, (0, -1))
        if seen != refreshes:
            start = max(start, round(self._evidence.total(key)))
        self._next[key] = start + count, refreshes
        return np.arange(start, start + count, dtype=np.int64)
