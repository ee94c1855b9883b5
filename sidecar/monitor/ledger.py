"""Coverage over all lives of the monitor: what was sampled, and what became of it.

It stands beside evidence that is of all lives, so it has to be of all lives as well: a certificate
of 10,000 requests of which 9,000 were compared before a restart must not be shown as covered by the
1,000 after it, nor may what was dropped while no monitor ran be forgotten. So the counts are kept
in the store, as evidence of no model.

The gateway's own counts are absolute, since ``serve`` began, and go on while no monitor runs. What
they were when this monitor last looked is kept too, and the difference is counted. Before the very
first look of a store nothing was watched, and nothing is counted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sidecar.monitor.evidence import Evidence
from sidecar.monitor.rows import EvidenceKey

#: All of them, of all lives.
COVERAGE = EvidenceKey("", "", "", "", "coverage")

Counts = Mapping[str, int]


def _tap_key(worker: int) -> EvidenceKey:
    return EvidenceKey("", "", "", str(worker), "tap")


@dataclass(slots=True)
class _Worker:
    """A gateway worker's counts: since when, up to what, and of a ``serve`` that ended before."""

    base: dict[str, int]
    last: dict[str, int]
    ended: dict[str, int]

    def since(self) -> dict[str, int]:
        total = dict(self.ended)
        for name, count in self.last.items():
            total[name] = total.get(name, 0) + count - self.base.get(name, 0)
        return total


class Ledger:
    """Adds up; for any thread."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._lock = threading.Lock()
        self._workers: dict[int, _Worker] = {}

    def note(self, taps: Mapping[int, Counts], own: Counts) -> dict[str, int]:
        """Take the present counts in; returns those of all lives.

        Args:
            taps: worker → the gateway's counts, absolute, of ``tap_…``.
            own: name → count of this life.
        """
        with self._lock:
            for worker, counters in taps.items():
                self._take(worker, dict(counters))
            cells: dict[str, float] = {name: float(count) for name, count in own.items()}
            for known in self._workers.values():
                for name, count in known.since().items():
                    cells[name] = cells.get(name, 0.0) + count
            self._evidence.set_cells(COVERAGE, {name: n for name, n in cells.items() if n})
            total = self._evidence.cells(COVERAGE)
        return {name: int(count) for name, count in total.items()}

    def _take(self, worker: int, counters: dict[str, int]) -> None:
        known = self._workers.get(worker)
        if known is None:
            before = self._evidence.latest_cells(_tap_key(worker))
            base = {name: int(count) for name, count in before.items()}
            if not before:
                base = dict(counters) if not self._evidence.latest_cells(COVERAGE) else {}
            elif _is_later(base, counters):  # of another `serve`, all of which was watched for
                base = {}
            known = self._workers[worker] = _Worker(base, {}, {})
        elif _is_later(known.last, counters):  # `serve` began again, while this monitor went on
            known.ended, known.base = known.since(), {}
        known.last = counters
        self._evidence.set_cells(_tap_key(worker), counters)


def by_reason(counts: Counts) -> tuple[Counter[str], Counter[str]]:
    """What was dropped, and what is not mirrored: reason → count; none that is zero."""
    dropped, not_mirrored = Counter[str](), Counter[str]()
    for name, count in counts.items():
        for prefix, reasons in (
            ("tap_dropped_", dropped), ("dropped_", dropped), ("not_mirrored_", not_mirrored),
        ):  # fmt: skip
            if name.startswith(prefix):
                reasons[name.removeprefix(prefix)] += count
    for name in ("shared_memory", "sequence", "too_large", "unclear"):
        not_mirrored[name] += counts.get(f"tap_{name}", 0)
    return +dropped, +not_mirrored


def _is_later(before: Counts, now: Counts) -> bool:
    """Whether counts that only grow have begun anew in between."""
    return any(now.get(name, 0) < count for name, count in before.items())
