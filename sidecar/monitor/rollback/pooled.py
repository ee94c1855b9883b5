"""What all replicas have served, added up. No sum ever falls, whoever goes or begins anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sidecar.monitor.rollback.traffic import Traffic

#: Counters of gateways that are gone are kept apart while there are not more of them.
_SOURCES_MAX = 1000

_Count = tuple[int, int]


class PooledTraffic:
    """Any thread.

    Args:
        own: what this replica's gateway has served, as it counts it.
        source: which counter that is: another one where the gateway began anew, the same one where
            only its monitor did.
        told: what every replica (this one, and such as are gone, too) told of itself last.
    """

    def __init__(
        self,
        own: Callable[[], Traffic],
        source: Callable[[], str],
        told: Callable[[], Iterable[Mapping[str, Any]]],
    ) -> None:
        self._own = own
        self._source = source
        self._told = told
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, _Count]] = {}
        self._past: dict[str, _Count] = {}

    def tell(self) -> dict[str, Any]:
        """What the others are told, as JSON values."""
        served = {variant: list(counts) for variant, counts in self._own().items()}
        return {"source": self._source(), "served": served}

    def traffic(self) -> Traffic:
        """The sum over all that was ever heard of in this life."""
        own, source = self._own(), self._source()
        others = [_read(one) for one in self._told()]
        with self._lock:
            for name, served in others:
                if name != source:
                    self._take(name, served)
            self._take(source, own)
            total = dict(self._past)
            for counts in self._counts.values():
                _add(total, counts)
        return total

    def _take(self, source: str, served: Traffic) -> None:
        known = self._counts.pop(source, {})  # the latest that was heard of is the last
        for variant, (ended, failed) in served.items():
            before = known.get(variant, (0, 0))
            # Two monitors may tell of one gateway, one of them for the last time: the most counts.
            known[variant] = max(before[0], ended), max(before[1], failed)
        if known:
            self._counts[source] = known
        while len(self._counts) > _SOURCES_MAX:
            _add(self._past, self._counts.pop(next(iter(self._counts))))


def _add(total: dict[str, _Count], counts: Mapping[str, _Count]) -> None:
    for variant, (ended, failed) in counts.items():
        before = total.get(variant, (0, 0))
        total[variant] = before[0] + ended, before[1] + failed


def _read(plain: Mapping[str, Any]) -> tuple[str, Traffic]:
    """What one has told; nothing where it cannot be read."""
    try:
        served = {str(v): (int(c[0]), int(c[1])) for v, c in dict(plain["served"]).items()}
        return str(plain["source"]), served
    except (KeyError, TypeError, ValueError, IndexError):
        return "", {}
