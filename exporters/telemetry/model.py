"""What is told: spans, log records and points of metrics, in plain Python.

Whoever makes them needs no SDK; ``encode.py`` turns them into the SDK's own objects. They were made
elsewhere and earlier (in the gateway, of requests that are long answered), so that ids and times
are always given, never invented here.

Everything is bounded when it is handed over, since it waits in memory: texts are cut, and more
attributes, events or links than the limits are left out and counted in the span itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from exporters.instruments import Instrument, Kind
from exporters.telemetry.context import SAMPLED, TraceContext

Value = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Attributes = Mapping[str, Value]

ATTRIBUTES_MAX = 64
#: Characters of one attribute's text, and of a name.
TEXT_MAX = 1024
#: Characters of a log record's body.
BODY_MAX = 8192
#: Elements of one attribute that is a sequence.
SEQUENCE_MAX = 64
LINKS_MAX = EVENTS_MAX = 32


class SpanKind(StrEnum):
    """The span's place between two services."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"
    PRODUCER = "producer"
    CONSUMER = "consumer"


@dataclass(slots=True)
class Link:
    """To a span of another trace: a mirror's to the request it repeats."""

    context: TraceContext
    attributes: Attributes = field(default_factory=dict)


@dataclass(slots=True)
class Event:
    """Something that happened within a span."""

    name: str
    time_ns: int
    attributes: Attributes = field(default_factory=dict)


@dataclass(slots=True)
class Span:
    """One span that is over. Not frozen, for speed (thousands a second); never changed after.

    Attributes:
        context: its own ids; not exported unless it is sampled.
        start_ns, end_ns: wall-clock time since 1970.
        parent_id: the parent's span id, 0 for a root.
        parent_remote: whether the parent is in another service.
        error: what failed; ``None``: nothing did.
    """

    name: str
    context: TraceContext
    start_ns: int
    end_ns: int
    kind: SpanKind = SpanKind.INTERNAL
    parent_id: int = 0
    parent_remote: bool = False
    attributes: Attributes = field(default_factory=dict)
    links: Sequence[Link] = ()
    events: Sequence[Event] = ()
    error: str | None = None


@dataclass(slots=True)
class Log:
    """One log record.

    Attributes:
        severity: of OpenTelemetry, 1 … 24 (DEBUG 5, INFO 9, WARN 13, ERROR 17, FATAL 21).
        severity_text: as the logger has it.
        context: whose trace it belongs to, if any.
        event: the name of the kind of event, if it is one.
    """

    body: str
    time_ns: int
    severity: int = 9
    severity_text: str = "INFO"
    attributes: Attributes = field(default_factory=dict)
    context: TraceContext | None = None
    event: str = ""


@dataclass(slots=True)
class Exemplar:
    """One measurement with the trace it comes from."""

    value: float
    time_ns: int
    context: TraceContext


@dataclass(slots=True)
class Number:
    """One value of a counter or gauge.

    Attributes:
        start_ns: since when a counter counts; 0: since this telemetry began.
    """

    instrument: Instrument
    value: int | float
    attributes: Mapping[str, str] = field(default_factory=dict)
    start_ns: int = 0
    exemplars: Sequence[Exemplar] = ()

    def __post_init__(self) -> None:
        if self.instrument.kind is Kind.HISTOGRAM:
            raise ValueError(f"{self.instrument.name} is a histogram: its points are Histogram")
        _declared(self.instrument, self.attributes)


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, gathered elsewhere; cumulative in time, not over buckets.

    Attributes:
        counts: one for each of the instrument's buckets, and one for what is above them all.
        sum: of all values, in the instrument's unit.
        start_ns: since when it counts; 0: since this telemetry began.
        exemplars: a few of the latest measurements.
    """

    instrument: Instrument
    counts: Sequence[int]
    sum: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    start_ns: int = 0
    exemplars: Sequence[Exemplar] = ()

    def __post_init__(self) -> None:
        if self.instrument.kind is not Kind.HISTOGRAM:
            raise ValueError(f"{self.instrument.name} is no histogram: its points are Number")
        if len(self.counts) != len(self.instrument.buckets) + 1:
            raise ValueError(
                f"{self.instrument.name} has {len(self.instrument.buckets)} buckets and one above:"
                f" {len(self.counts)} counts do not fit"
            )
        _declared(self.instrument, self.attributes)


Point = Number | Histogram


def _declared(instrument: Instrument, attributes: Mapping[str, str]) -> None:
    """An attribute that is not declared would be a series nobody knows of."""
    if unknown := attributes.keys() - instrument.attributes:
        raise ValueError(
            f"{instrument.name} has no attribute {', '.join(sorted(unknown))}; declared are"
            f" {', '.join(instrument.attributes) or 'none'}"
        )


# --- bounds ---------------------------------------------------------------------------------------


def bounded_span(span: Span) -> Span | None:
    """``span`` within the limits; ``None`` where its trace is not sampled."""
    if not span.context.flags & SAMPLED:
        return None
    attributes = bounded(span.attributes)
    error = span.error
    if (
        attributes is span.attributes
        and not span.links
        and not span.events
        and error is None
        and len(span.name) <= TEXT_MAX
    ):
        return span
    return replace(
        span,
        name=span.name[:TEXT_MAX],
        attributes=attributes,
        error=None if error is None else error[:TEXT_MAX],
        links=[Link(one.context, bounded(one.attributes)) for one in span.links[:LINKS_MAX]],
        events=[
            Event(one.name[:TEXT_MAX], one.time_ns, bounded(one.attributes))
            for one in span.events[:EVENTS_MAX]
        ],
    )


def bounded_log(log: Log) -> Log:
    """``log`` within the limits."""
    return replace(
        log,
        body=log.body[:BODY_MAX],
        severity_text=log.severity_text[:TEXT_MAX],
        attributes=bounded(log.attributes),
        event=log.event[:TEXT_MAX],
    )


def bounded(attributes: Attributes) -> Attributes:
    """The attributes within the limits: the very same where they are (the usual case)."""
    if len(attributes) <= ATTRIBUTES_MAX:
        for key, value in attributes.items():
            # Spelled out: a call for each attribute would double what handing a span over costs.
            kind = type(value)
            if kind is str:
                if len(value) > TEXT_MAX:  # type: ignore[arg-type]
                    break
            elif kind is int:
                if not -_INT64 <= value < _INT64:  # type: ignore[operator]
                    break
            elif kind is not float and kind is not bool:
                break
            if len(key) > TEXT_MAX:
                break
        else:
            return attributes
    few = list(attributes.items())[:ATTRIBUTES_MAX]
    return {key[:TEXT_MAX]: _cut(value) for key, value in few}


#: What OTLP holds; a larger one would be lost, with a traceback in the log.
_INT64 = 2**63


def _cut(value: Value) -> Value:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_cut_one(one) for one in list(value)[:SEQUENCE_MAX]]  # type: ignore[return-value]
    return _cut_one(value)


def _cut_one(value: object) -> str | bool | int | float:
    if isinstance(value, bool | float) or (isinstance(value, int) and -_INT64 <= value < _INT64):
        return value
    return str(value)[:TEXT_MAX]
