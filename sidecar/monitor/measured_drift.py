"""Drift as metrics: what the latest judged window scored, column by column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from exporters import instruments
from exporters.telemetry.model import Number, Point
from sidecar.monitor.view_drift import DriftView


class MeasuredDrift:
    """Makes points of what is shown; for any thread.

    ``views``: every model's drift as it is now.
    """

    def __init__(self, views: Callable[[], Iterable[DriftView]]) -> None:
        self._views = views

    def points(self) -> Iterator[Point]:
        """Every metric of drift. Of a model without a judged window, none."""
        for view in self._views():
            if view.last_window_wall_ns is None:
                continue
            of = {"model.name": view.model, "reference": view.reference}
            yield Number(instruments.DRIFT_ROWS, view.last_window_rows, of)
            yield Number(instruments.DRIFT_LAST_SUCCESS, view.last_window_wall_ns / 1e9, of)
            for unit in view.units:
                attributes = {**of, "column": unit.unit, "method": unit.method}
                yield Number(instruments.DRIFT_SCORE, unit.value, attributes)
                yield Number(instruments.DRIFT_THRESHOLD, unit.threshold, attributes)
                if view.state != "not_watched" and unit.state != "insufficient_data":
                    alarm = int(unit.state == "alarm")
                    yield Number(instruments.DRIFT_ALARM, alarm, attributes)
