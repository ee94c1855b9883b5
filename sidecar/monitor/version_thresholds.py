"""From which time on a request counts as slow: quantiles of the previous version's earlier times.

Of this life's own recent times, once there are enough of them. Before, where others have seen more
(earlier lives, other replicas), of all those together: the slowest hundredth of 200 times is two of
them, and 32 replicas with 200 each know it well. Whatever a threshold is, the bet is fair if it was
known before the pair (``validators/sequential/latency.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sidecar.monitor.evidence import Evidence
from sidecar.monitor.rows import EvidenceKey
from sidecar.runtimes.base import Array
from validators.sequential.latency import PAST_MIN, QUANTILES, History
from validators.sketches import LogHistogram

#: The previous version's times, milliseconds, as a sketch.
PREVIOUS_MS = "previous_ms"
#: From so many own times on they decide alone: they are of the recent past, and of this place.
OWN_FROM = 2000
#: Sizes of a batch, of one pair, whose times are shared. Each is a row that all replicas read.
SIZES_MAX = 8
#: What all have seen is summed again after so many own times, and not more often than so.
_RENEW, _RENEW_S = 50, 5.0


@dataclass(slots=True)
class _All:
    """Of all together: how many times, and what they give."""

    count: int = 0
    thresholds: Array = field(default_factory=lambda: np.full(len(QUANTILES), np.nan))
    at_seen: int = -_RENEW
    at_ns: int = 0


class Thresholds:
    """Those of every pair of versions and size of a batch; for one thread."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._history = History()
        self._sizes: dict[EvidenceKey, set[int]] = {}
        self._all: dict[tuple[EvidenceKey, int], _All] = {}

    def of(self, key: EvidenceKey, sizes: Sequence[int]) -> Array:
        """τ_q in milliseconds, [n, 4] in the order of ``QUANTILES``; NaN where too few times were
        seen.

        Args:
            key: of the pair of versions.
            sizes: rows of each batch, [n]: times are comparable among those with as many.
        """
        return np.array([self._of(key, size) for size in sizes])

    def _of(self, key: EvidenceKey, size: int) -> Array:
        place = key, size
        seen = self._history.seen(place)
        if seen < OWN_FROM and size in self._shared(key, size):
            found = self._together(key, size, seen)
            if found.count > seen and found.count >= PAST_MIN:
                return found.thresholds
        return self._history.thresholds(place)

    def _together(self, key: EvidenceKey, size: int, seen: int) -> _All:
        found = self._all.setdefault((key, size), _All())
        now_ns = self._evidence.monotonic_ns()
        if seen - found.at_seen < _RENEW or (found.at_ns and now_ns - found.at_ns < _RENEW_S * 1e9):
            return found
        sketch = self._evidence.sketch(_of_size(key, size))
        found.count, found.at_seen, found.at_ns = sketch.count, seen, now_ns
        found.thresholds = np.array([sketch.quantile(share) for share in QUANTILES])
        return found

    def _shared(self, key: EvidenceKey, size: int) -> set[int]:
        sizes = self._sizes.setdefault(key, set())
        if len(sizes) < SIZES_MAX:
            sizes.add(size)
        return sizes

    def add(self, key: EvidenceKey, sizes: Sequence[int], previous_ms: Array) -> None:
        """Take in the previous version's times, [n], after their pairs were judged."""
        by_size: dict[int, list[float]] = {}
        for size, time_ms in zip(sizes, previous_ms.tolist(), strict=True):
            self._history.add((key, size), time_ms)
            if size in self._shared(key, size):
                by_size.setdefault(size, []).append(time_ms)
        for size, times_ms in by_size.items():
            sketch = LogHistogram()
            sketch.add(times_ms)
            self._evidence.add_sketch(_of_size(key, size), sketch)


def _of_size(key: EvidenceKey, size: int) -> EvidenceKey:
    return replace(key, metric=f"{PREVIOUS_MS}/{size}")
