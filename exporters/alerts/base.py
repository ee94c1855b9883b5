"""What channels share: their common settings, and how alerts are put in words."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from exporters.alerts.alert import Alert, Severity, State

#: Of ``uuid5``: what is told twice has the same id both times.
_NAMESPACE = uuid.UUID("6f1b0d63-93a5-5d0e-8a7f-0c2f6a1e9b54")


@dataclass(frozen=True, slots=True)
class Common:
    """What every channel is told of itself."""

    name: str
    least: Severity = Severity.INFO
    timeout_s: float = 10.0


class BaseChannel:
    """The attributes of a ``Channel`` at their usual values."""

    kind = ""
    resend_s: float | None = None
    keeps_resolved_s = 0.0
    ends_tests = False

    def __init__(self, common: Common) -> None:
        self.name = common.name
        self.least = common.least
        self.timeout_s = common.timeout_s

    def close(self) -> None:
        """There is nothing to let go of."""


def event_id(alert: Alert) -> str:
    """The id of an alert in its state: the same at every attempt, on every machine."""
    return str(uuid.uuid5(_NAMESPACE, f"{alert.id}/{alert.state}"))


def rfc3339(wall_ns: int) -> str:
    """``2026-01-31T12:00:00.123456Z``."""
    at = datetime.fromtimestamp(wall_ns // 10**9, UTC).replace(microsecond=wall_ns // 1000 % 10**6)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def changed_ns(alert: Alert) -> int:
    """When it came to be in its state."""
    return alert.ended_ns if alert.state is State.RESOLVED and alert.ended_ns else alert.started_ns


def clip(text: str, characters: int) -> str:
    """At most so many characters; an ellipsis where something is missing."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def one_line(text: str) -> str:
    """Without line breaks and control characters: what is put into a header or a title."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def finite(value: Any) -> Any:
    """A value as JSON can say it: infinities and NaN, which it cannot, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def word(value: Any) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def title(alert: Alert) -> str:
    """``[FIRING] critical: the summary``."""
    severity = f" {alert.severity}:" if alert.state is State.FIRING else ""
    return one_line(f"[{alert.state.upper()}]{severity} {alert.summary}")


def facts(alert: Alert) -> Iterator[tuple[str, str]]:
    """Name and words of everything beside the story, in the order that people read it in."""
    yield "alert", alert.name
    yield "id", alert.id
    yield "since", rfc3339(alert.started_ns)
    if alert.state is State.RESOLVED:
        yield "resolved", rfc3339(changed_ns(alert))
    for name, value in {**alert.labels, **alert.values}.items():
        yield name, word(value)
