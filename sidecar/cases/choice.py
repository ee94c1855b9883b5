"""Which exchanges are kept: a uniform sample, the worst, the first of each kind of failure.

Pure bookkeeping over ids; ``writer.py`` does what follows from it. There is one ``Chooser`` for
each pair of variants, so that a noisy pair does not push out what another one showed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sidecar.cases.case import Offer

RESERVOIR = "reservoir"
WORST = "worst:"
FAILURE = "failure:"

#: Kinds of failure and metrics that are told apart; what comes later shares the name "other" or
#: has no places of its own.
KINDS_MAX = 64
METRICS_MAX = 256
#: The sample forgets what it has seen in steps of this share of the time to live.
_BUCKETS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """``reservoir``, ``worst``, ``per_failure`` and time to live of a config."""

    reservoir: int
    worst: int
    per_failure: int
    time_to_live_ns: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Why an exchange is wanted, and who gives a place up for it: (reason, id)."""

    reasons: tuple[str, ...]
    replaced: tuple[tuple[str, str], ...]


class Chooser:
    """Decides for one pair of variants."""

    def __init__(self, limits: Limits, rng: random.Random) -> None:
        self._limits = limits
        self._rng = rng
        self._sample: list[str] = []
        # metric → heap of (badness, id): the least bad of the worst is the first to go.
        self._worst: dict[str, list[tuple[float, str]]] = {}
        self._failures: dict[str, set[str]] = {}
        # How many were offered, by time: what is older than the time to live no longer counts.
        self._seen: dict[int, int] = {}
        self._total = 0
        self._step_ns = max(limits.time_to_live_ns // _BUCKETS, 1)

    def choose(self, offer: Offer, now_ns: int) -> Choice:
        """Count an exchange and say whether it is wanted; nothing is taken until ``accept``."""
        reasons: list[str] = []
        replaced: list[tuple[str, str]] = []
        if offer.failure is not None and self._limits.per_failure:
            kind = self._known_kind(offer.failure)
            if len(self._failures.get(kind, ())) < self._limits.per_failure:
                reasons.append(FAILURE + kind)
        for metric, worse in offer.limited.items():
            badness = _badness(offer.metrics.get(metric, math.nan), worse)
            heap = self._worst.get(metric, [])
            if math.isnan(badness) or not self._limits.worst:
                continue
            if len(heap) < self._limits.worst:
                if metric in self._worst or len(self._worst) < METRICS_MAX:
                    reasons.append(WORST + metric)
            elif badness > heap[0][0]:
                reasons.append(WORST + metric)
                replaced.append((WORST + metric, heap[0][1]))
        self._count(now_ns)
        # Algorithm R (Vitter 1985): the n-th is taken with probability k/n, for a random one of
        # the k. Where places are free although n > k (their cases were too old), it takes a free
        # one with that same probability: a sample that filled up at once would be all of one hour.
        place = self._rng.randrange(self._total) if self._limits.reservoir else 0
        if place < self._limits.reservoir:
            reasons.append(RESERVOIR)
            if len(self._sample) >= self._limits.reservoir:
                replaced.append((RESERVOIR, self._sample[place]))
        return Choice(tuple(reasons), tuple(replaced))

    def accept(self, case_id: str, offer: Offer, choice: Choice) -> None:
        """Give ``case_id`` the places that ``choice`` found, and take them from others."""
        for reason, old in choice.replaced:
            self._leave(reason, {old})
        for reason in choice.reasons:
            self._join(reason, case_id, offer.metrics, offer.limited)

    def adopt(
        self,
        case_id: str,
        reasons: Iterable[str],
        metrics: Mapping[str, float],
        limited: Mapping[str, str],
    ) -> tuple[str, ...]:
        """Take up a case that was found on disk; return which of its reasons still hold."""
        held = []
        for reason in reasons:
            if self._has_place(reason):
                self._join(reason, case_id, metrics, limited)
                held.append(reason)
        return tuple(held)

    def forget(self, ids: Collection[str]) -> None:
        """Free all places of cases that are gone."""
        self._leave(RESERVOIR, ids)
        for metric in list(self._worst):
            self._leave(WORST + metric, ids)
        for kind in list(self._failures):
            self._leave(FAILURE + kind, ids)

    @property
    def seen(self) -> dict[int, int]:
        """Start of a stretch of time, nanoseconds → how many were offered in it."""
        return {bucket * self._step_ns: count for bucket, count in self._seen.items()}

    @property
    def total(self) -> int:
        """How many were offered within the time to live."""
        return self._total

    def restore_seen(self, seen: Mapping[int, int]) -> None:
        """Go on with the counts of an earlier run, so that its sample stays a sample."""
        for start_ns, count in seen.items():
            bucket = start_ns // self._step_ns
            self._seen[bucket] = self._seen.get(bucket, 0) + count
            self._total += count

    def _count(self, now_ns: int) -> None:
        bucket = now_ns // self._step_ns
        if bucket not in self._seen:
            for old in [start for start in self._seen if start <= bucket - _BUCKETS]:
                self._total -= self._seen.pop(old)
        self._seen[bucket] = self._seen.get(bucket, 0) + 1
        self._total += 1

    def _known_kind(self, kind: str) -> str:
        return kind if kind in self._failures or len(self._failures) < KINDS_MAX else "other"

    def _has_place(self, reason: str) -> bool:
        if reason == RESERVOIR:
            return len(self._sample) < self._limits.reservoir
        if reason.startswith(WORST):
            heap = self._worst.get(reason.removeprefix(WORST))
            if heap is None:
                return self._limits.worst > 0 and len(self._worst) < METRICS_MAX
            return len(heap) < self._limits.worst
        if not reason.startswith(FAILURE):
            return False
        kind = self._failures.get(reason.removeprefix(FAILURE))
        if kind is None:
            return self._limits.per_failure > 0 and len(self._failures) <= KINDS_MAX
        return len(kind) < self._limits.per_failure

    def _join(
        self, reason: str, case_id: str, metrics: Mapping[str, float], limited: Mapping[str, str]
    ) -> None:
        if reason == RESERVOIR:
            self._sample.append(case_id)
        elif reason.startswith(WORST):
            metric = reason.removeprefix(WORST)
            badness = _badness(metrics.get(metric, math.nan), limited.get(metric, "higher"))
            badness = -math.inf if math.isnan(badness) else badness
            heapq.heappush(self._worst.setdefault(metric, []), (badness, case_id))
        else:
            self._failures.setdefault(reason.removeprefix(FAILURE), set()).add(case_id)

    def _leave(self, reason: str, ids: Collection[str]) -> None:
        if reason == RESERVOIR:
            self._sample = [held for held in self._sample if held not in ids]
        elif reason.startswith(WORST):
            heap = self._worst[reason.removeprefix(WORST)]
            heap[:] = [item for item in heap if item[1] not in ids]
            heapq.heapify(heap)
        else:
            self._failures[reason.removeprefix(FAILURE)].difference_update(ids)


def _badness(value: float, worse: str) -> float:
    """Higher is worse; NaN: the metric does not apply."""
    return value if worse == "higher" else -value
