"""What is shown of telemetry: whether it is told, and how each backend does."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SignalStatus:
    """One signal on its way to its backend, since this monitor began.

    Attributes:
        signal: ``traces``, ``metrics`` or ``logs``.
        exporter: ``otlp-grpc``, ``otlp-http``, ``prometheus``, ``console``.
        endpoint: where to; empty for the console.
        up: whether the last attempt was taken; of what is scraped always true.
        exported: items (spans, points, records) that were taken.
        dropped: reason → items.
        waiting: items in the queue.
        error: the last failure, empty while all is well.
    """

    signal: str
    exporter: str
    endpoint: str
    up: bool
    exported: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    waiting: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class TelemetryStatus:
    """All signals.

    Attributes:
        state: ``off`` (nothing is to be told), ``starting``, ``ok``, ``failing`` (a backend does
            not take what it is sent), ``failed`` (nothing can be told at all), ``stopped``.
        message: why it failed.
        prometheus: URL to scrape, empty without.
    """

    state: str = "off"
    message: str = ""
    prometheus: str = ""
    signals: list[SignalStatus] = field(default_factory=list)
