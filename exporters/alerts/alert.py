"""What an alert says, and what a channel must be able to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class State(StrEnum):
    """Whether it goes on."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Severity(StrEnum):
    """How soon a person should look, in rising order."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that people are told, in one state. Plain data: it is stored while it waits.

    Attributes:
        id: the same for all states of one alert (a decision's id, say): what channels de-duplicate
            by.
        name: what kind: ``ModelRollback``, ``ModelRegressionSuspected``, ``RollbackCheckStale``,
            ``ModelServingErrors``, ``RollbackBlocked``, ``TestAlert``.
        labels: its identity: ``model``, ``new``, ``previous``, ``metric``, …; few, and never a
            number that changes.
        summary: one line; ``text``: the whole story, in plain sentences.
        values: numbers and words that change: evidence, threshold, pairs, action, …
        links: name → URL.
        started_ns, ended_ns: wall clock; ``ended_ns`` 0 while it goes on.
    """

    id: str
    name: str
    state: State
    severity: Severity
    summary: str
    text: str
    started_ns: int
    ended_ns: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


class DeliveryError(Exception):
    """A channel did not take an alert.

    Attributes:
        retry_after_s: as the other side asked for; ``None``: as usual.
        is_final: trying the same again is no use (the address or the key is wrong).
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, is_final: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_final = is_final


class Channel(Protocol):
    """Somewhere alerts go. Made of its configuration once; used by one thread.

    Attributes:
        name: as configured, unique.
        kind: of its configuration.
        resend_s: say a firing alert again so often, although it was taken; ``None``: never.
        keeps_resolved_s: go on saying that it is resolved for so long.
    """

    name: str
    kind: str
    resend_s: float | None
    keeps_resolved_s: float

    def send(self, alert: Alert, now_ns: int) -> None:
        """Deliver, and return once it was taken.

        Raises:
            DeliveryError: it was not.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
