"""Whether an action shows: which versions the gateway's requests have gone to since."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.clock import Clock
from sidecar.monitor.actions.base import Outcome, Request, Result
from sidecar.monitor.routing import Routes

#: The workers' counts are about a second old: what was answered before a change may be counted
#: after it. So long without any request, and there is none to be seen.
_SETTLED_S = 3.0
_REMEMBERED_MAX = 64


@dataclass(frozen=True, slots=True)
class _Look:
    counts: dict[str, int]
    at_ns: int


class Traffic:
    """Looks at the counts again and again; the first look of a decision is where it begins."""

    def __init__(self, routes: Routes, clock: Clock) -> None:
        self._routes = routes
        self._clock = clock
        self._first: dict[str, _Look] = {}

    def forget(self, request: Request) -> None:
        """Begin anew: the change was made just now, or once more."""
        self._first.pop(request.decision_id, None)

    def moved(self, request: Request, *, none_is_enough: str = "") -> Result:
        """Whether requests go to the previous version, and none to the new one.

        Args:
            none_is_enough: what is known besides, where no request comes at all: then that is
                enough, and said. Empty: without requests nothing is known.

        Returns:
            DONE, or RETRY: not yet.
        """
        now_ns = self._clock.monotonic_ns()
        counts = self._routes.observed(request.model)
        first = self._first.get(request.decision_id)
        if first is None or any(counts.get(key, 0) < n for key, n in first.counts.items()):
            # A worker that was started again counts from 0.
            self._begin(request, counts, now_ns)
            return Result(Outcome.RETRY, "looking where requests go from now on")
        since = {key: n - first.counts.get(key, 0) for key, n in counts.items()}
        new, previous = since.get(request.new_version, 0), since.get(request.previous_version, 0)
        if new > 0:
            self._begin(request, counts, now_ns)
            text = f"{new} requests went to version {request.new_version} since the last look"
            return Result(Outcome.RETRY, text)
        details = {"requests_new": str(new), "requests_previous": str(previous)}
        if previous > 0:
            text = f"{previous} requests since: all to version {request.previous_version}, none to "
            return Result(Outcome.DONE, f"{text}{request.new_version}", details)
        if none_is_enough and now_ns - first.at_ns >= _SETTLED_S * 1e9:
            text = f"no request has come since; {none_is_enough}"
            return Result(Outcome.DONE, text, details)
        return Result(Outcome.RETRY, "no request has come since")

    def _begin(self, request: Request, counts: dict[str, int], now_ns: int) -> None:
        self._first[request.decision_id] = _Look(dict(counts), now_ns)
        while len(self._first) > _REMEMBERED_MAX:
            del self._first[next(iter(self._first))]
