"""What an alert says, and what a channel must be able to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol, Self


class State(StrEnum):
    """Whether it goes on."""

    FIRING = "firing"
    RESOLVED = "resolved"


class Severity(StrEnum):
    """How soon a person should look, in rising order."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    def is_at_least(self, other: Severity) -> bool:
        """Whether it is as high as ``other``, or higher."""
        order = list(Severity)
        return order.index(self) >= order.index(other)


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
        lasting: news also when it is over: something was done. A channel that could not be told in
            time hears that it fired, and then that it ended.
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
    lasting: bool = False

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse; what a later release added is left out.

        Raises:
            TypeError, ValueError: it is none.
        """
        known = {name: plain[name] for name in cls.__dataclass_fields__ if name in plain}
        state, severity = State(known.pop("state")), Severity(known.pop("severity"))
        return cls(**known, state=state, severity=severity)


class DeliveryError(Exception):
    """A channel did not take an alert.

    Attributes:
        retry_after_s: as the other side asked for; ``None``: as usual.
        is_final: trying the same again is no use: the alert itself was refused. (Not where the
            address or the key is wrong: somebody mends that, and then it should arrive.)
        maybe_taken: nobody knows: it was sent, and then the connection broke, say.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        is_final: bool = False,
        maybe_taken: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_final = is_final
        self.maybe_taken = maybe_taken


class ChannelError(Exception):
    """A channel cannot be made as configured.

    Attributes:
        key: the setting that is wrong; empty: a library is missing, which the text names.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class Channel(Protocol):
    """Somewhere alerts go. Made of its configuration once; used by one thread at a time.

    Attributes:
        name: as configured, unique.
        kind: of its configuration.
        least: the least severity that it is told.
        timeout_s: of one attempt.
        resend_s: say a firing alert again so often, although it was taken; ``None``: never.
        keeps_resolved_s: go on saying that it is resolved for so long.
        ends_tests: something stays open after a test alert, which is therefore resolved at once.
    """

    name: str
    kind: str
    least: Severity
    timeout_s: float
    resend_s: float | None
    keeps_resolved_s: float
    ends_tests: bool

    def send(self, alert: Alert, now_ns: int) -> None:
        """Deliver, and return once it was taken.

        Raises:
            DeliveryError: it was not.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...
