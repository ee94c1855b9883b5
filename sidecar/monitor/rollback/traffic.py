"""What the new version's own traffic says: is it still compared, does it still serve, and how often
does it fail while serving?

Requests are counted by the gateway in the pages, which lose nothing; where the monitor runs alone,
from the exchanges that it is sent, of which there is a sample.

**Errors while serving** have no pair to stand beside: a load that makes both versions fail looks
the same. So they alert and never act. The evidence is that of ``certificate.py`` for a rate over
``rollback.served.limit``, with a new start each thousand requests, for a version may serve well for
a million requests first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sidecar.clock import Clock
from sidecar.monitor.rollback.decisions import PairId
from validators.sequential.paired import BLOCK, StartMixture, budget_evidence

#: Requests without a pair are no sign of anything while a sample of so many is likely empty: seven
#: expected pairs, none seen, has a chance of e⁻⁷.
_EXPECTED_PAIRS = 7.0

#: Variant → (requests that ended by success or a fault of ours, those that failed or fell back).
Traffic = Mapping[str, tuple[int, int]]


@dataclass(slots=True)
class _Seen:
    """Monotonic time, and counts, when something last grew."""

    count: int
    mono_ns: int
    requests: int = 0


class Fresh:
    """When the latest pair came, and who still gets requests. Under the book's lock.

    Args:
        rate: share of requests that are to be mirrored.
    """

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock = clock
        self._rate = rate
        self._pairs: dict[PairId, _Seen] = {}
        self._served: dict[str, _Seen] = {}
        self._seen_serving: set[str] = set()
        self._last_ns: dict[PairId, int] = {}

    def note(self, traffic: Traffic) -> None:
        """Look at the requests of every variant."""
        now_ns = self._clock.monotonic_ns()
        for variant, (ended, _) in traffic.items():
            seen = self._served.get(variant)
            if seen is None:
                self._served[variant] = _Seen(ended, now_ns)
            elif ended != seen.count:
                seen.count, seen.mono_ns = ended, now_ns
                self._seen_serving.add(variant)

    def knows(self, pair: PairId) -> bool:
        """Whether ``saw`` was called for it."""
        return pair in self._pairs

    def saw(self, pair: PairId, pairs: int, pair_ns: int, *, is_own: bool) -> None:
        """Look at how many pairs there are by now.

        Args:
            pair_ns: wall clock, when the latest of earlier lives was seen.
            is_own: this life has counted some of them.
        """
        now_ns, requests = self._clock.monotonic_ns(), self._requests(pair.model)
        seen = self._pairs.get(pair)
        if seen is None:
            self._pairs[pair] = _Seen(pairs, now_ns, requests)
            self._last_ns[pair] = now_ns if is_own else self._begun_ns(pair_ns, now_ns)
        elif pairs != seen.count:
            seen.count, seen.mono_ns, seen.requests = pairs, now_ns, requests
            self._last_ns[pair] = now_ns

    def _begun_ns(self, pair_ns: int, now_ns: int) -> int:
        """The latest pair of earlier lives, on this one's clock; long ago where the wall clock has
        gone back since: then only a new one is fresh."""
        age_ns = self._clock.now_ns() - pair_ns
        return now_ns - age_ns if pair_ns and age_ns >= 0 else now_ns - 10**18

    def _requests(self, model: str) -> int:
        return sum(s.count for v, s in self._served.items() if v.startswith(f"{model}:"))

    def is_stale(self, pair: PairId, after_s: float) -> bool:
        """No new pair for so long, while requests came of which there should have been one."""
        seen = self._pairs.get(pair)
        if seen is None or self._clock.monotonic_ns() - seen.mono_ns < after_s * 1e9:
            return False
        return (self._requests(pair.model) - seen.requests) * self._rate >= _EXPECTED_PAIRS

    def not_fresh(self, pair: PairId, after_s: float) -> str:
        """Why a pair is too old to act on; empty: it is not."""
        last_ns = self._last_ns.get(pair)
        if last_ns is None:
            return "the versions have not been looked at since the monitor began"
        if self._clock.monotonic_ns() - last_ns > after_s * 1e9:
            return f"the latest is older than {after_s:g} s (rollback.stale_after_s)"
        return ""

    def is_gone(self, variant: str, model: str, within_s: float) -> bool:
        """Whether a variant that served in this life gets nothing any more, while others do."""
        if variant not in self._seen_serving:
            return False
        last_ns = self._served[variant].mono_ns
        if self._clock.monotonic_ns() - last_ns < within_s * 1e9:
            return False
        return any(
            seen.mono_ns > last_ns
            for other, seen in self._served.items()
            if other != variant and other.startswith(f"{model}:") and other in self._seen_serving
        )

    def again(self, pair: PairId) -> None:
        """Count the time without a pair from now on."""
        seen = self._pairs.get(pair)
        if seen is not None:
            seen.mono_ns, seen.requests = (
                self._clock.monotonic_ns(), self._requests(pair.model),
            )  # fmt: skip


@dataclass(slots=True)
class Served:
    """Errors while serving of one variant.

    Attributes:
        limit: the rate that is tolerated.
        closed_ns: of the decision that was closed last, as far as it was heard of.
    """

    limit: float
    closed_ns: int = 0
    _counted: tuple[int, int] = (0, 0)
    _since: tuple[int, int] = (0, 0)
    _mixture: StartMixture = field(
        default_factory=lambda: StartMixture((), np.zeros((0, 2), np.float64))
    )
    best_log_e: float = 0.0

    @property
    def ended(self) -> int:
        """Requests that are looked at."""
        return self._counted[0] - self._since[0]

    @property
    def failed(self) -> int:
        """Of them."""
        return self._counted[1] - self._since[1]

    def marks(self) -> dict[str, float]:
        """What ``begin`` takes, of now."""
        return {"ended": self._counted[0], "failed": self._counted[1]}

    def begin(self, marks: Mapping[str, float]) -> None:
        """Count from there on; with all of α."""
        self._since = int(marks.get("ended", 0)), int(marks.get("failed", 0))
        self._counted = max(self._counted, self._since)
        self._mixture = StartMixture((), np.zeros((0, 2), np.float64))
        self.best_log_e = 0.0

    def add(self, ended: int, failed: int) -> float:
        """Take in what the counters say now; return the best evidence so far."""
        if ended < self._counted[0]:  # the gateway began anew: so does its count
            self._counted = self._since = (0, 0)
            self.begin({})
        before = max(self._counted, self._since)
        more = ended - before[0], min(max(failed - before[1], 0), ended - before[0])
        if more[0] <= 0:
            return self.best_log_e
        block = (before[0] - self._since[0]) // BLOCK + 1
        self._counted = ended, failed
        starts, counts = list(self._mixture.starts), self._mixture.counts
        row = np.array([[more[1], more[0]]], np.float64)
        if starts and starts[-1] == block:
            counts = np.concatenate([counts[:-1], counts[-1:] + row])
        else:
            starts.append(block)
            counts = np.concatenate([counts, row])
        evidence = budget_evidence(self.limit)
        self._mixture = StartMixture(tuple(starts), counts).thin(evidence)
        self.best_log_e = max(self.best_log_e, self._mixture.log_e(evidence))
        return self.best_log_e

    def is_over(self, alpha: float) -> bool:
        """Whether it fails too often, with that risk of saying so falsely ever."""
        return self.best_log_e >= -math.log(alpha)
