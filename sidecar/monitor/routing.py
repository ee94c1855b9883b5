"""Which version answers: what the monitor may ask, and what it may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sidecar.errors import ConflictError


@dataclass(frozen=True, slots=True)
class RouteView:
    """The route of one model.

    Attributes:
        revision: grows by one with each change; 0: as configured, never changed.
        shares: version → its share of the requests that name no version; they sum to 1.
        sticky: the metadata key, or empty.
        by: who changed it (``config``, ``operator``, ``rollback``), and ``reason``: in words.
        changed_wall_ns: 0: never.
        workers: gateway workers that are connected, over all replicas; ``applied``: of them, at
            this revision.
        candidates: versions that are held warm and answer nobody until they are promoted.
        versions: those that can be given a share.
        problem: what keeps workers from following it as it was set, or the table from being read;
            empty: nothing.
        replicas: monitors that share the route and live; 0: it is this pod's alone.
        replicas_applied: of them, those all of whose workers are at this revision.
    """

    model: str
    revision: int
    shares: dict[str, float]
    sticky: str = ""
    by: str = "config"
    reason: str = ""
    changed_wall_ns: int = 0
    workers: int = 0
    applied: int = 0
    candidates: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    problem: str = ""
    replicas: int = 0
    replicas_applied: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a version answers at the very copies that would serve it.

    Attributes:
        ok: every connected worker's copy, at every replica, answered a request just now.
        text: why not, or how it was.
        unheard: nothing speaks against it, but not all could be asked: ask again.
    """

    ok: bool
    text: str
    unheard: bool = False


class RouteConflictError(ConflictError):
    """Somebody else has changed the route meanwhile: look again."""


class Routes(Protocol):
    """The route table, as the monitor sees it. Any thread."""

    def routes(self) -> list[RouteView]:
        """All models' routes."""
        ...

    def route(self, model: str) -> RouteView:
        """One model's.

        Raises:
            NotFoundError: no such model; names those there are.
        """
        ...

    def set(
        self, model: str, shares: dict[str, float], *, by: str, reason: str,
        expected: int | None = None,
    ) -> RouteView:  # fmt: skip
        """Change it: durable when this returns; gateways follow within half a second.

        Args:
            shares: version → weight; an exact set, versions not named get nothing.
            expected: the revision it must have now; ``None``: whatever it is.

        Raises:
            NotFoundError, InvalidRequestError: no such model or version, or no sensible shares.
            RouteConflictError: it is not at ``expected``.
            UnavailableError: it cannot be written, or not where all replicas read it.
        """
        ...

    def probe(self, model: str, version: str, timeout_s: float) -> Probe:
        """Let every gateway worker run its own copy of a version once."""
        ...

    def observed(self, model: str) -> dict[str, int]:
        """Version → requests answered so far by default routing and otherwise, over all workers.

        From the workers' own counts, so it is about a second old, and of other replicas as old as
        ``age_s`` says.
        """
        ...

    def age_s(self) -> float:
        """After so long counts hold what had been answered when they were first asked for."""
        ...
