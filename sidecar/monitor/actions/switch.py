"""The gateway routes to the previous version, which it holds warm: the first choice.

Everything that the new version had goes to the previous one; other versions keep their shares, and
requests that name a version get that version as before. The route table keeps the change over
restarts, and says by which decision it was made: that is what a repetition is known by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from sidecar.clock import Clock
from sidecar.errors import RequestError, UnavailableError
from sidecar.monitor.actions.base import Outcome, Request, Result
from sidecar.monitor.actions.traffic import Traffic
from sidecar.monitor.routing import RouteConflictError, Routes, RouteView

_BY = "rollback"
_PROBE_S = 10.0
_REMEMBERED_MAX = 64
#: The table keeps no more of a reason, and cuts off its end, where our record is.
_REASON_MAX = 1000
_RECORD = re.compile(r"\[decision (?P<id>\S+), fence (?P<fence>\d+), before (?P<before>\{.*\})\]$")
_UNDONE = re.compile(r"\[undone: decision (?P<id>\S+)\]$")


class SwitchAction:
    """One model's route."""

    kind = "switch"

    def __init__(self, routes: Routes, clock: Clock) -> None:
        self._routes = routes
        self._traffic = Traffic(routes, clock)
        #: Decision → the revision at which it was found that it can be done.
        self._checked: dict[str, int] = {}

    def check(self, request: Request) -> Result:
        """Is the previous version there, and does each worker's own copy of it answer now?"""
        return _said(lambda: self._check(request))

    def perform(self, request: Request) -> Result:
        """Change the route, if it is still the one that was looked at."""
        return _said(lambda: self._perform(request))

    def verify(self, request: Request) -> Result:
        """Do all workers apply it, and go requests where they should?"""
        return _said(lambda: self._verify(request))

    def undo(self, request: Request) -> Result:
        """Give back the shares from before."""
        return _said(lambda: self._undo(request))

    def _check(self, request: Request) -> Result:
        route = self._routes.route(request.model)
        if (done := _done_before(route, request)) is not None:
            return done
        if (unfit := _unfit(route, request)) is not None:
            return unfit
        if route.workers == 0:
            return Result(Outcome.RETRY, f"{request.model}: no gateway worker is connected")
        probe = self._routes.probe(request.model, request.previous_version, _PROBE_S)
        if probe.unheard:
            return Result(Outcome.RETRY, f"{request.model}: {probe.text}")
        if not probe.ok:
            text = f"version {request.previous_version} does not answer at the copies that would "
            return Result(Outcome.BLOCKED, f"{text}serve it: {probe.text}")
        self._checked[request.decision_id] = route.revision
        while len(self._checked) > _REMEMBERED_MAX:
            del self._checked[next(iter(self._checked))]
        where = "every worker of every replica" if route.replicas else "every worker"
        text = f"version {request.previous_version} answers at {where}: {probe.text}"
        return Result(Outcome.DONE, text, {"revision": str(route.revision)})

    def _perform(self, request: Request) -> Result:
        route = self._routes.route(request.model)
        if (done := _done_before(route, request)) is not None:
            return done
        if (unfit := _unfit(route, request)) is not None:
            return unfit
        shares = {
            version: share
            for version, share in route.shares.items()
            if share > 0 and version != request.new_version
        }
        moved = route.shares[request.new_version]
        shares[request.previous_version] = shares.get(request.previous_version, 0.0) + moved
        before = json.dumps(route.shares, separators=(",", ":"))
        record = f" [decision {request.decision_id}, fence {request.fence}, before {before}]"
        if len(record) > _REASON_MAX:
            text = f"{request.model}: its route has so many shares that they cannot be written down"
            return Result(Outcome.BLOCKED, text)
        expected = self._checked.pop(request.decision_id, route.revision)
        try:
            after = self._routes.set(
                request.model, shares, by=_BY, expected=expected,
                reason=request.reason[: _REASON_MAX - len(record)] + record,
            )  # fmt: skip
        except RouteConflictError as error:
            return Result(
                Outcome.RETRY, f"{request.model}: its route was changed meanwhile: {error}"
            )
        self._traffic.forget(request)
        text = (
            f"{request.model}: the {moved:.0%} of requests that version {request.new_version} had "
            f"go to version {request.previous_version}; requests that name version "
            f"{request.new_version} still get it"
        )
        details = {
            "revision": str(after.revision), "before": before,
            "after": json.dumps(after.shares, separators=(",", ":")),
        }  # fmt: skip
        return Result(Outcome.DONE, text, details)

    def _verify(self, request: Request) -> Result:
        route = self._routes.route(request.model)
        record = _RECORD.search(route.reason) if route.by == _BY else None
        if record is None or record["id"] != request.decision_id:
            text = f"{request.model}: its route was changed since, by {route.by}: {route.reason}"
            return Result(Outcome.BLOCKED, text)
        if route.workers == 0:
            return Result(Outcome.RETRY, f"{request.model}: no gateway worker is connected")
        applied = f"{route.applied} of {route.workers} workers apply revision {route.revision}"
        if route.replicas:
            applied += f", at {route.replicas_applied} of {route.replicas} replicas"
        behind = route.applied < route.workers or route.replicas_applied < route.replicas
        if behind or route.problem:
            self._traffic.forget(request)
            return Result(Outcome.RETRY, f"{applied}: {route.problem}".removesuffix(": "))
        seen = self._traffic.moved(request, applied="all workers apply the route")
        details = {**seen.details, "revision": str(route.revision)}
        return Result(seen.outcome, f"{applied}: {seen.text}", details)

    def _undo(self, request: Request) -> Result:
        route = self._routes.route(request.model)
        undone = _UNDONE.search(route.reason)
        if undone is not None and undone["id"] == request.decision_id:
            return Result(Outcome.DONE, f"{request.model}: undone before")
        record = _RECORD.search(route.reason) if route.by == _BY else None
        if record is None or record["id"] != request.decision_id:
            text = f"{request.model}: its route was changed since, by {route.by}: {route.reason}; "
            return Result(Outcome.BLOCKED, f"{text}set it with `sidecar route`")
        before = json.loads(record["before"])
        undoing = f" [undone: decision {request.decision_id}]"
        try:
            after = self._routes.set(
                request.model, before, by="operator", expected=route.revision,
                reason=f"undone: {request.reason}"[: _REASON_MAX - len(undoing)] + undoing,
            )  # fmt: skip
        except RouteConflictError as error:
            return Result(
                Outcome.RETRY, f"{request.model}: its route was changed meanwhile: {error}"
            )
        text = f"{request.model}: the shares are those from before the rollback again"
        return Result(Outcome.DONE, text, {"revision": str(after.revision)})


def _done_before(route: RouteView, request: Request) -> Result | None:
    if (undone := _UNDONE.search(route.reason)) and undone["id"] == request.decision_id:
        text = f"decision {request.decision_id} was done, and an operator undid it: not done again"
        return Result(Outcome.BLOCKED, text)
    record = _RECORD.search(route.reason) if route.by == _BY else None
    if record is None or record["id"] != request.decision_id:
        return None
    if int(record["fence"]) > request.fence:
        text = f"decision {request.decision_id} has a later owner (fence {record['fence']}, ours "
        return Result(Outcome.BLOCKED, f"{text}is {request.fence}), who has acted: we do nothing")
    text = f"decision {request.decision_id} has made this change before"
    return Result(Outcome.DONE, text, {"revision": str(route.revision)})


def _unfit(route: RouteView, request: Request) -> Result | None:
    if route.shares.get(request.new_version, 0.0) <= 0:
        text = f"{request.model}: version {request.new_version} has no share of the requests"
        return Result(Outcome.NOTHING, text)
    if request.previous_version not in route.versions:
        known = ", ".join(route.versions) or "none"
        text = f"{request.model}: version {request.previous_version} is not held here; there is "
        return Result(Outcome.BLOCKED, f"{text}{known}")
    return None


def _said(call: Callable[[], Result]) -> Result:
    """What the route table refuses is a result: a model or version that is gone. One that cannot be
    written now (the replicas' database is away) may be written later."""
    try:
        return call()
    except UnavailableError as error:
        return Result(Outcome.RETRY, str(error))
    except RequestError as error:
        return Result(Outcome.BLOCKED, str(error))
