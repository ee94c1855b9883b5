"""The `Routes` of the tests' own: a route table in memory, with what the gateway would answer."""

from __future__ import annotations

import threading
from dataclasses import replace

from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor.routing import Probe, RouteConflictError, RouteView


class RouteTable:
    """One model, `digits`, whose version 3 is new.

    Attributes:
        down: version → why it does not answer a probe.
        asked: versions that were probed.
        behind: workers that have not heard of the latest change; ``problem``: why they cannot.
    """

    def __init__(self, **shares: float) -> None:
        self.view = RouteView(
            "digits", 0, {key.lstrip("v"): share for key, share in (shares or {"v3": 1.0}).items()},
            workers=2, applied=2, versions=["1", "2", "3"],
        )  # fmt: skip
        self.counts: dict[str, int] = {"1": 0, "2": 0, "3": 50}
        self.down: dict[str, str] = {}
        self.asked: list[str] = []
        self.behind = 0
        self.problem = ""
        self.changes = 0
        self._lock = threading.Lock()

    def routes(self) -> list[RouteView]:
        return [self.route("digits")]

    def route(self, model: str) -> RouteView:
        if model != "digits":
            message = f"no model {model!r}; there is digits"
            raise NotFoundError(message)
        with self._lock:
            applied = self.view.workers - self.behind
            return replace(self.view, applied=applied, problem=self.problem)

    def set(
        self, model: str, shares: dict[str, float], *, by: str, reason: str,
        expected: int | None = None,
    ) -> RouteView:  # fmt: skip
        self.route(model)
        with self._lock:
            if expected not in {None, self.view.revision}:
                message = f"it is at revision {self.view.revision}, not {expected}"
                raise RouteConflictError(message)
            if unknown := set(shares) - set(self.view.versions):
                message = f"no version {sorted(unknown)}"
                raise InvalidRequestError(message)
            total = sum(shares.values())
            self.view = replace(
                self.view, shares={key: one / total for key, one in shares.items()}, by=by,
                reason=reason.strip()[:1000], revision=self.view.revision + 1,
            )  # fmt: skip
            self.changes += 1
            return self.view

    def probe(self, model: str, version: str, timeout_s: float) -> Probe:
        self.route(model)
        assert timeout_s > 0
        self.asked.append(version)
        why = self.down.get(version)
        return Probe(why is None, why or "2 workers in 1.2 ms")

    def observed(self, model: str) -> dict[str, int]:
        self.route(model)
        return dict(self.counts)

    def age_s(self) -> float:
        return 3.0

    def serve(self, count: int) -> None:
        """Requests that name no version come, and go where the route says (not to shares of 0)."""
        for version, share in self.view.shares.items():
            self.counts[version] += round(count * share)
