"""Histograms of what the monitor does that no evidence is made of: told as metrics, kept nowhere.

They are of this life of the process. What is counted for verdicts is in ``evidence.py``.
"""

from __future__ import annotations

import threading
from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from exporters.instruments import SQNR_BUCKETS_DB
from sidecar.gateway.pages import BUCKETS_NS

#: What an infinite ratio (nothing differs) counts with in the sum: as the last bucket's bound.
_SQNR_MOST_DB = SQNR_BUCKETS_DB[-1]

Counted = tuple[list[int], float]


class Tally:
    """Counts by bucket; one thread counts, any may look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executions: dict[str, Counted] = {}
        self._sqnr: dict[tuple[str, str], Counted] = {}

    def execution(self, variant: str, ns: int) -> None:
        """A copy of ``variant`` (``model:version/name``) was executed for so long."""
        with self._lock:
            counts, total = self._executions.get(variant) or ([0] * (len(BUCKETS_NS) + 1), 0.0)
            counts[bisect_left(BUCKETS_NS, ns)] += 1
            self._executions[variant] = counts, total + ns / 1e9

    def sqnr(self, variant: str, output: str, db: npt.NDArray[np.float64]) -> None:
        """Signal to difference ratios of requests, in decibels [n]; NaN where there is none."""
        db = db[~np.isnan(db)]
        if not db.size:
            return
        buckets = np.searchsorted(SQNR_BUCKETS_DB, db, side="left")
        added = np.bincount(buckets, minlength=len(SQNR_BUCKETS_DB) + 1).tolist()
        finite = float(np.clip(db, -_SQNR_MOST_DB, _SQNR_MOST_DB).sum())
        with self._lock:
            counts, total = self._sqnr.get((variant, output)) or ([0] * len(added), 0.0)
            self._sqnr[variant, output] = (
                [a + b for a, b in zip(counts, added, strict=True)],
                total + finite,
            )

    def executions(self) -> dict[str, Counted]:
        """Variant → executions by bucket of ``BUCKETS_NS``, and their seconds."""
        with self._lock:
            return {key: (list(counts), total) for key, (counts, total) in self._executions.items()}

    def sqnrs(self) -> dict[tuple[str, str], Counted]:
        """(Variant, output) → requests by bucket of ``SQNR_BUCKETS_DB``, and their decibels."""
        with self._lock:
            return {key: (list(counts), total) for key, (counts, total) in self._sqnr.items()}
