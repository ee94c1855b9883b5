"""Points of every instrument, with every attribute it may have: what dashboards are tried on.

Nothing here is likely; it is complete. A panel that shows nothing of this never shows anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from exporters import instruments as known
from exporters.instruments import ATTRIBUTES, INSTRUMENTS, Instrument, Kind
from exporters.telemetry.model import Histogram, Number, Point

#: Attribute → values that it has; others have one that is made up.
VALUES: dict[str, tuple[str, ...]] = {
    "rpc.system.name": ("grpc",),
    "error.type": ("", "ExecutionError"),
    "model.version": ("1", "2"),
    "role": ("serving", "mirror"),
    "stage": ("decode", "queue", "execute", "encode"),
    "direction": ("in", "out"),
    "verdict": ("PASS", "FAIL", "INVALID"),
    "column": ("brightness", "contrast"),
    "state": (
        "insufficient",
        "ok",
        "suspect",
        "regressed",
        "rolled_back",
        "blocked",
    ),
    "signal": ("traces", "metrics", "logs"),
}
#: Instrument → its outcomes with their reasons.
OUTCOMES: dict[Instrument, tuple[tuple[str, str], ...]] = {
    known.REQUESTS: (
        ("success", ""),
        ("cancel", ""),
        ("fail", "ExecutionError"),
        ("refused", "requests"),
    ),
    known.CACHE: (("hit", ""), ("miss", "")),
    known.MIRROR_EXCHANGES: (
        ("compared", ""),
        ("dropped", "full"),
        ("set_aside", "crash"),
        ("not_mirrored", "shared_memory"),
    ),
    known.LABELS: (("matched", ""), ("early", ""), ("repeated", ""), ("lost", "expired")),
    known.ALERTS: tuple(
        (outcome, "") for outcome in ("sent", "retried", "failed", "suppressed", "refused")
    ),
    known.TELEMETRY_ITEMS: (("exported", ""), ("dropped", "queue_full")),
}


def attributes(one: Instrument) -> Iterator[dict[str, str]]:
    """Every set of attributes that a point of it has here."""
    free = [name for name in one.attributes if name not in {"outcome", "reason"}]
    for values in product(*(VALUES.get(name, (f"some {name}",)) for name in free)):
        found = dict(zip(free, values, strict=True))
        if "outcome" not in one.attributes:
            yield {**found, "reason": "full"} if "reason" in one.attributes else found
            continue
        for outcome, reason in OUTCOMES[one]:
            ended = {**found, "outcome": outcome}
            yield {**ended, "reason": reason} if "reason" in one.attributes else ended


class Everything:
    """A reader whose counts grow with each collection."""

    def __init__(self, since_ns: int) -> None:
        self._since_ns = since_ns
        self._asked = 0

    def points(self) -> Iterator[Point]:
        """All of it."""
        self._asked += 1
        for one in INSTRUMENTS:
            for labels in attributes(one):
                yield self._point(one, labels)

    def _point(self, one: Instrument, labels: dict[str, str]) -> Point:
        if one.kind is Kind.HISTOGRAM:
            counts = [self._asked] * (len(one.buckets) + 1)
            return Histogram(one, counts, sum(one.buckets) * self._asked, labels, self._since_ns)
        if one.kind is Kind.COUNTER:
            return Number(one, 5 * self._asked, labels, self._since_ns)
        return Number(one, 1, labels)


def unknown_values() -> list[str]:
    """Values above that nothing in ``instruments.py`` describes."""
    found = [
        value
        for name, values in VALUES.items()
        for value in values
        if "`" in ATTRIBUTES[name] and value and f"`{value}`" not in ATTRIBUTES[name]
    ]
    for one, outcomes in OUTCOMES.items():
        found += [outcome for outcome, _ in outcomes if outcome not in one.description]
    return found
