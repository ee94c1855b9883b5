"""Everything about drift in one monitor: the windows, the deep runs, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from exporters.telemetry.model import Point
from sidecar.clock import Clock
from sidecar.config import SidecarConfig
from sidecar.monitor import spans
from sidecar.monitor.deep.runs import DeepRuns
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.drift_windows import Judged
from sidecar.monitor.events import EventLog
from sidecar.monitor.measured_drift import MeasuredDrift
from sidecar.monitor.sampled import drift_models
from sidecar.monitor.telling import Telling
from sidecar.monitor.view_drift import DriftView
from validators.drift.state import State

logger = logging.getLogger(__name__)


class DriftSide:
    """Puts the parts together; they know nothing of one another.

    Args:
        state_dir: reports of deep runs lie in ``drift`` of it.
        telling: is handed a span of each window.
    """

    def __init__(
        self,
        config: SidecarConfig,
        events: EventLog,
        state_dir: Path,
        telling: Telling,
        clock: Clock,
    ) -> None:
        models = drift_models(config)
        self._telling = telling
        self.watch = DriftWatch(models, events, clock, self._on_window)
        self.deep = DeepRuns(models, self.watch, state_dir, clock)
        self._measured = MeasuredDrift(self.views)
        self._alarming: set[str] = set()

    def start(self) -> None:
        """Read the references, and begin the schedule of deep runs."""
        self.watch.start()
        try:
            self.deep.start()
        except Exception:  # a scheduler that does not start is its own loss, not the windows'
            logger.exception("no deep drift runs")

    def tick(self) -> None:
        """About once a second."""
        self.watch.tick()

    def close(self) -> None:
        """End what runs; bounded. Idempotent."""
        self.watch.close()
        self.deep.close()

    def views(self) -> list[DriftView]:
        """Every model, with its latest report."""
        return [self.deep.show(view) for view in self.watch.views()]

    def points(self) -> Iterator[Point]:
        """Every metric of drift."""
        return self._measured.points()

    def _on_window(self, model: str, judged: Judged, start_ns: int, end_ns: int) -> None:
        if not self.watch.alarming(model):
            self._alarming.discard(model)
        elif model not in self._alarming:  # once for an alarm, not for each column that joins it
            self._alarming.add(model)
            self.deep.soon(model)  # someone will want to look, and Evidently's page shows where
        if not self._telling.tells_spans:
            return
        view = next(one for one in self.watch.views() if one.model == model)
        state = view.state if judged.scores is not None else str(State.INSUFFICIENT_DATA)
        self._telling.span(
            spans.drift_window(
                model, rows=judged.rows, state=state, reference=view.reference,
                start_ns=start_ns, end_ns=end_ns,
            )
        )  # fmt: skip
