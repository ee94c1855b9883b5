"""Whether an action shows: which versions the gateway's requests have gone to since."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.clock import Clock
from sidecar.monitor.actions.base import Outcome, Request, Result
from sidecar.monitor.routing import Routes

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

    def moved(self, request: Request, *, applied: str = "") -> Result:
        """Whether requests go to the previous version, and none to the new one.

        The counts hold requests that name a version as well: those go on, to the new one too.

        Args:
            applied: what is known besides, in words: that no request goes to the new version unless
                it names it. Then it is enough that the previous one gets some, or that none comes.
                Empty: the counts are all that is known.

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
        details = {"requests_new": str(new), "requests_previous": str(previous)}
        # What was answered before the change may be counted after it. So long without any request,
        # and there is none to be seen.
        settled = bool(applied) and now_ns - first.at_ns >= self._routes.age_s() * 1e9
        if new == 0 and previous > 0:
            text = f"{previous} requests since: all to version {request.previous_version}, none to "
            return Result(Outcome.DONE, f"{text}{request.new_version}", details)
        if settled and new == 0:
            return Result(Outcome.DONE, f"no request has come since; {applied}", details)
        if new == 0:
            return Result(Outcome.RETRY, "no request has come since", details)
        text = f"{new} requests went to version {request.new_version} since, {previous} to "
        text += request.previous_version
        if settled and previous > 0:
            text += f"; {applied}, so the former came before or name their version"
            return Result(Outcome.DONE, text, details)
        if not applied:
            self._begin(request, counts, now_ns)
        return Result(Outcome.RETRY, text, details)

    def _begin(self, request: Request, counts: dict[str, int], now_ns: int) -> None:
        self._first[request.decision_id] = _Look(dict(counts), now_ns)
        while len(self._first) > _REMEMBERED_MAX:
            del self._first[next(iter(self._first))]
