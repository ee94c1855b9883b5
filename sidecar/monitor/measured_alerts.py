"""Alerts as metrics: what became of them, and how many wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from exporters import instruments
from exporters.telemetry.model import Number, Point


class MeasuredAlerts:
    """Makes points of the outbox's counts; for any thread.

    Args:
        counts: (channel, outcome) → alerts since the start.
        waiting: channel → alerts that it has not taken yet.
        started_ns: wall clock, when counting began.
    """

    def __init__(
        self,
        counts: Callable[[], Mapping[tuple[str, str], int]],
        waiting: Callable[[], Mapping[str, int]],
        started_ns: int,
    ) -> None:
        self._counts = counts
        self._waiting = waiting
        self._started_ns = started_ns

    def points(self) -> Iterator[Point]:
        """Every metric of alerts."""
        for (channel, outcome), count in sorted(self._counts().items()):
            of = {"channel": channel, "outcome": outcome}
            yield Number(instruments.ALERTS, count, of, self._started_ns)
        for channel, count in self._waiting().items():
            yield Number(instruments.ALERTS_WAITING, count, {"channel": channel})
