"""A fleet as metrics: who decides, who lives, and how old the news from the shared store is."""

from __future__ import annotations

from collections.abc import Iterator

from exporters import instruments
from exporters.telemetry.model import Number, Point
from sidecar.clock import Clock
from sidecar.monitor.fleet_side import FleetSide
from sidecar.monitor.leader import Leadership


class MeasuredFleet:
    """Makes points of what is known here; for any thread, and never waits for the store.

    Args:
        fleet: ``None``: there is none, and nothing is told.
    """

    def __init__(self, leadership: Leadership, fleet: FleetSide | None, clock: Clock) -> None:
        self._leadership = leadership
        self._fleet = fleet
        self._clock = clock
        self._started_ns = clock.now_ns()

    def points(self) -> Iterator[Point]:
        """Every metric of the fleet."""
        if self._fleet is None:
            return
        yield Number(instruments.FLEET_LEADER, int(self._leadership.is_leader), {})
        changes = self._leadership.terms
        yield Number(instruments.FLEET_LEADER_CHANGES, changes, {}, self._started_ns)
        yield Number(instruments.FLEET_REPLICAS, len(self._fleet.alive()), {})
        silent_s = self._fleet.silent_s
        # Of one that was never reached, since when it has tried.
        at_ns = self._started_ns if silent_s is None else self._clock.now_ns() - int(silent_s * 1e9)
        yield Number(instruments.FLEET_LAST_EXCHANGE, at_ns / 1e9, {})
