"""Simulated replicas: who sees which pair when, what they hand over, and what the leader knows.

The joining is the code that ships (``Rests``, ``Pool``, ``PairIndex``), done once for many runs:
what pairs add up to are arrays over runs, since where a block ends does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sidecar.monitor.pool import HOLD, QUIET_ROUNDS, Pool, Row
from sidecar.monitor.pool_rests import POOLED, SLICE_NS, Rests
from sidecar.monitor.rounds import JOIN
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.version_blocks import PairIndex
from validators.sequential.paired import BLOCK, budget_evidence, log_e_margin, logmeanexp

SYNC_S = 1.0
LEADER = -1
KEY = EvidenceKey("m", "new", "old", "", "error", "p")


@dataclass
class Pairs:
    """Pairs in the order in which they were seen, of many runs with the same times and places.

    Attributes:
        times_s: [pairs], rising. ``replica``: [pairs].
        new_only, previous_only: bool [runs, pairs, bets].
    """

    times_s: np.ndarray
    replica: np.ndarray
    new_only: np.ndarray
    previous_only: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        """What each adds to its block, float32 [pairs, runs, bets]."""
        both = self.new_only.astype(np.float32) - self.previous_only
        return np.ascontiguousarray(both.transpose(1, 0, 2))

    def of(self, replica: int) -> np.ndarray:
        """Which pairs a replica saw."""
        return np.flatnonzero(self.replica == replica)


@dataclass
class Known:
    """What the leader knows, and since when.

    Attributes:
        pairs_s: [pairs], when each pair is known; ``stretches``: the thousand it is counted under.
        blocks: of whole blocks: since when, stretch, pairs, and what they add up to [runs, bets].
    """

    pairs_s: np.ndarray
    stretches: np.ndarray
    blocks: list[tuple[float, int, int, np.ndarray]]


def alone(pairs: Pairs, length: int = POOLED) -> Known:
    """One replica with all the traffic."""
    count = len(pairs.times_s)
    stretches = np.arange(count) // BLOCK
    blocks = list(_own_blocks(pairs, np.arange(count), stretches, pairs.times_s, length))
    return Known(pairs.times_s, stretches, blocks)


def fleet(
    pairs: Pairs,
    phases_s: np.ndarray,
    *,
    pooled: bool = True,
    length: int = POOLED,
    metric: str = "error",
) -> Known:
    """Replicas that exchange counts each second, at times of their own, and one that leads.

    ``pooled``: blocks are joined over replicas; else each replica has blocks of its own.
    """
    round_of = [_next(pairs.times_s[pairs.of(r)], phase) for r, phase in enumerate(phases_s)]
    told_s, stretches = np.empty(len(pairs.times_s)), np.empty(len(pairs.times_s), np.int64)
    for replica, phase_s in enumerate(phases_s):
        mine = pairs.of(replica)
        told_s[mine] = round_of[replica] * SYNC_S + phase_s
    for replica, phase_s in enumerate(phases_s):
        mine = pairs.of(replica)
        others_s = np.sort(np.delete(told_s, mine))
        index = PairIndex(_Counted(others_s, len(mine)))
        read_s = _next(pairs.times_s[mine], (JOIN * SYNC_S + phase_s) % SYNC_S) - 1
        read_s = read_s * SYNC_S + (JOIN * SYNC_S + phase_s) % SYNC_S
        stretches[mine] = [
            int(index.take(_at(KEY, index, at, before_s), 1)[0]) // BLOCK
            for at, before_s in enumerate(read_s.tolist())
        ]
    known_s = joined_s(told_s)
    if pooled:
        return Known(known_s, stretches, list(_pooled(pairs, told_s, stretches, phases_s, metric)))
    blocks = []
    for replica in range(len(phases_s)):
        mine = pairs.of(replica)
        blocks += _own_blocks(pairs, mine, stretches, known_s, length)
    return Known(known_s, stretches, sorted(blocks, key=lambda one: one[0]))


def joined_s(times_s: np.ndarray) -> np.ndarray:
    """When the leader joins next, and a look that is due comes."""
    return _next(times_s, JOIN * SYNC_S) * SYNC_S + JOIN * SYNC_S


def _next(times_s: np.ndarray, phase_s: float) -> np.ndarray:
    """Which exchange is the next one after each time."""
    return np.maximum(np.ceil((times_s - phase_s) / SYNC_S), 0)


class _Counted:
    """What ``PairIndex`` asks of the evidence: how much all have counted, as last read."""

    def __init__(self, others_s: np.ndarray, own: int) -> None:
        self._others_s = others_s
        self.refreshes, self.at_s, self.own = 0, -math.inf, 0

    def total(self, _key: EvidenceKey) -> float:
        return self.own + float(np.searchsorted(self._others_s, self.at_s, side="right"))


def _at(key: EvidenceKey, index: PairIndex, own: int, read_s: float) -> EvidenceKey:
    counted = index._evidence
    if read_s != counted.at_s:
        counted.at_s, counted.refreshes = read_s, counted.refreshes + 1
    counted.own = own
    return key


def _own_blocks(
    pairs: Pairs, mine: np.ndarray, stretches: np.ndarray, known_s: np.ndarray, length: int
) -> Iterator[tuple[float, int, int, np.ndarray]]:
    differences = pairs.differences
    for end in range(length, len(mine) + 1, length):
        inside = mine[end - length : end]
        yield (
            float(known_s[inside[-1]]), int(stretches[inside[-1]]), length,
            differences[inside].sum(axis=0),
        )  # fmt: skip


def _pooled(
    pairs: Pairs, told_s: np.ndarray, stretches: np.ndarray, phases_s: np.ndarray, metric: str
) -> Iterator[tuple[float, int, int, np.ndarray]]:
    """Hand over and join, exchange by exchange."""
    series = replace(KEY, metric=metric)
    differences, pool, sides = pairs.differences, Pool(), [Rests() for _ in phases_s]
    seen_ns = (pairs.times_s * 1e9).astype(np.int64).tolist()
    order = np.argsort(told_s, kind="stable")
    order = order[np.lexsort((order, told_s[order]))]
    at, rounds = 0, int((told_s.max() - phases_s.min()) / SYNC_S) + 5
    quiet = [QUIET_ROUNDS] * len(phases_s)
    phased = [*enumerate(phases_s.tolist()), (LEADER, JOIN * SYNC_S)]
    told = sorted((k * SYNC_S + phase, r) for k in range(rounds) for r, phase in phased)
    for seq, (now_s, replica) in enumerate(told, start=1):
        if replica == LEADER:
            for _, (block, count, total) in pool.join(int(now_s * 1e9), int(HOLD * SYNC_S * 1e9)):
                yield now_s, block, count, np.asarray(total)
            continue
        here = []
        while at < len(order) and told_s[order[at]] <= now_s + 1e-9:
            here.append(order[at])
            at += 1
        if here:
            whole = sides[replica].add(
                series, list(differences[here]), stretches[here].tolist(),
                [seen_ns[i] for i in here],
            )  # fmt: skip
            for block, count, total in whole:  # a whole block within a slice: its own
                # Known when the leader has read it.
                yield float(joined_s(np.array(now_s))), block, count, np.asarray(total)
        quiet[replica] = 0 if here else quiet[replica] + 1
        if quiet[replica] < QUIET_ROUNDS:
            row = Row(str(replica), seq, int(now_s * 1e9) // SLICE_NS, sides[replica].take())
            pool.take(row, int(now_s * 1e9))


# --- looking --------------------------------------------------------------------------------------


def log_es(
    pairs: Pairs,
    known: Known,
    looks_s: np.ndarray,
    *,
    budget: float | None = None,
    until: float = math.inf,
) -> np.ndarray:
    """What the checks say at each look, log E [runs, looks]: the lesser of both tests.

    Args:
        budget: of flips, which are tested by blocks alone.
        until: looks end once every run has reached it; what is left is the last one.
    """
    runs, _, bets = pairs.new_only.shape
    starts = int(known.stretches.max(initial=0)) + 1
    by_pair, by_block = np.zeros((2, runs, starts, bets)), np.zeros((2, runs, starts, bets))
    order = np.argsort(known.pairs_s, kind="stable")
    ends = np.searchsorted(known.pairs_s[order], looks_s, side="right")
    blocks = sorted(known.blocks, key=lambda one: one[0])
    found, at, block_at, best = np.zeros((runs, len(looks_s))), 0, 0, np.zeros(runs)
    for look, now_s in enumerate(looks_s):
        for pair in order[at : ends[look]] if budget is None else ():
            stretch = known.stretches[pair]
            by_pair[0, :, stretch] += pairs.new_only[:, pair]
            by_pair[1, :, stretch] += pairs.previous_only[:, pair]
        at = max(at, int(ends[look]))
        while block_at < len(blocks) and blocks[block_at][0] <= now_s:
            _, stretch, count, total = blocks[block_at]
            if budget is None:
                by_block[0, :, stretch] += total > 1e-9
                by_block[1, :, stretch] += total < -1e-9
            else:
                by_block[0, :, stretch] += np.minimum(total, 1)
                by_block[1, :, stretch] += count / POOLED
            block_at += 1
        seen = int(known.stretches[order[:at]].max(initial=0)) + 1
        log_e = _mixed(by_block[:, :, :seen], budget)
        if budget is None:
            log_e = np.minimum(log_e, _mixed(by_pair[:, :, :seen], None))
        found[:, look] = log_e
        best = np.maximum(best, log_e)
        if (best >= until).all():
            found[:, look:] = best[:, None]
            break
    return found


def _mixed(counts: np.ndarray, budget: float | None) -> np.ndarray:
    """``StartMixture.log_e`` of many runs, from counts [2, runs, starts, bets]."""
    since = np.cumsum(counts[:, :, ::-1], axis=2)[:, :, ::-1]
    if budget is None:
        each = log_e_margin(0.0, since[0], since[1], 0.0)
        log_e = logmeanexp(each) if each.shape[-1] > 1 else each[..., 0]
    else:
        log_e = budget_evidence(POOLED * budget)(np.stack([since[0], since[1]], axis=-1))[..., 0]
    numbers = np.arange(1, log_e.shape[1] + 1)
    terms = np.logaddexp.reduce(log_e - np.log(numbers * (numbers + 1.0)), axis=1)
    return np.logaddexp(terms, -math.log(log_e.shape[1] + 1))
