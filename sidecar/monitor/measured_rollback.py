"""Rollback as metrics: evidence beside its thresholds, states, and what was decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

from exporters import instruments
from exporters.telemetry.model import Number, Point
from sidecar.monitor.rollback.states import State
from sidecar.monitor.view_rollback import RollbackView

#: (model, state, metric).
Decided = tuple[str, str, str]


class MeasuredRollback:
    """Makes points of what is shown; for any thread.

    Args:
        views: every pair as it is now.
        decided: how often what was decided in this life.
        started_ns: wall clock, when that began.
    """

    def __init__(
        self,
        views: Callable[[], Iterable[RollbackView]],
        decided: Callable[[], Mapping[Decided, int]],
        started_ns: int,
    ) -> None:
        self._views = views
        self._decided = decided
        self._started_ns = started_ns
        self._pairs: dict[tuple[str, ...], tuple[int, int]] = {}

    def points(self) -> Iterator[Point]:
        """Every metric of rolling back. Of a pair that was not looked at yet, its state."""
        frozen: dict[str, bool] = {}
        for view in self._views():
            frozen[view.model] = view.frozen
            yield from self._pair(view)
        for model, is_frozen in frozen.items():
            yield Number(instruments.ROLLBACK_FROZEN, int(is_frozen), {"model.name": model})
        for (model, state, metric), count in self._decided().items():
            of = {"model.name": model, "state": state, "metric": metric}
            yield Number(instruments.ROLLBACK_DECISIONS, count, of, self._started_ns)

    def _pair(self, view: RollbackView) -> Iterator[Point]:
        of = {"model.name": view.model, "new": view.new, "previous": view.previous}
        for state in State:
            now = int(view.state == state)
            yield Number(instruments.ROLLBACK_STATE, now, {**of, "state": str(state)})
        yield Number(instruments.ROLLBACK_STALE, int(view.stale), of)
        if view.checked_wall_ns is not None:
            yield Number(instruments.ROLLBACK_LAST_CHECK, view.checked_wall_ns / 1e9, of)
        if view.decision is not None:
            action = {"action": view.action, "state": view.decision.action_state}
            yield Number(instruments.ROLLBACK_ACTION, 1, {**of, **action})
        for harm in view.metrics:
            if not math.isfinite(harm.threshold):
                continue  # one that only informs
            attributes = {**of, "metric": harm.metric}
            yield Number(instruments.ROLLBACK_EVIDENCE, harm.log_e, attributes)
            yield Number(instruments.ROLLBACK_THRESHOLD, harm.threshold, attributes)
            if math.isfinite(harm.threshold_act):
                yield Number(instruments.ROLLBACK_THRESHOLD_ACT, harm.threshold_act, attributes)
            count = self._more(tuple(attributes.values()), harm.pairs)
            yield Number(instruments.ROLLBACK_PAIRS, count, attributes, self._started_ns)

    def _more(self, key: tuple[str, ...], pairs: int) -> int:
        """Pairs of this life, from zero: those of earlier lives would look like a burst, and an
        operator who sets a pair back takes none away."""
        last, count = self._pairs.get(key, (pairs, 0))
        count += max(pairs - last, 0)
        self._pairs[key] = pairs, count
        return count
