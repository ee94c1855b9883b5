"""From our plain objects to the SDK's, and from those to OTLP or JSON.

``ReadableSpan`` and ``MetricsData`` are the SDK's own classes for what is ready to be exported;
made directly, with the ids and times that are known, they go through the SDK's encoders like any
other. No provider, no processor, no global state of the SDK is used: those would make ids and times
of their own, and read the environment behind the configuration's back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from exporters.instruments import Instrument, Kind
from exporters.telemetry import model
from exporters.telemetry.context import TraceContext
from exporters.telemetry.settings import Signal

SCOPE = "model_sidecar"
_KINDS = {
    model.SpanKind.SERVER: SpanKind.SERVER,
    model.SpanKind.CLIENT: SpanKind.CLIENT,
    model.SpanKind.INTERNAL: SpanKind.INTERNAL,
    model.SpanKind.PRODUCER: SpanKind.PRODUCER,
    model.SpanKind.CONSUMER: SpanKind.CONSUMER,
}
_UNSET = Status(StatusCode.UNSET)
_CUMULATIVE = sdk.AggregationTemporality.CUMULATIVE
#: How the SDK says that nobody has kept the least and the greatest value.
_NOT_KEPT: Any = None


class Encoder:
    """Makes requests; safe to use from several threads.

    Args:
        resource: attributes of all that is told.
        version: of this program, told as the version of the scope.
        now_ns: wall-clock time, for the points' own times.
        start_ns: since when counters count that do not say so.
    """

    def __init__(
        self,
        resource: Mapping[str, str],
        version: str,
        *,
        now_ns: Callable[[], int],
        start_ns: int,
    ) -> None:
        self._resource = Resource({"service.name": "model-sidecar", **resource})
        self._scope = InstrumentationScope(SCOPE, version)
        self._now_ns, self._start_ns = now_ns, start_ns

    def otlp(self, signal: Signal) -> Callable[[Sequence[Any]], bytes]:
        """What makes a request of OTLP of a slice of this signal."""
        return {
            Signal.TRACES: lambda items: encode_spans(self.spans(items)).SerializeToString(),
            Signal.METRICS: lambda items: encode_metrics(self.metrics(items)).SerializeToString(),
            Signal.LOGS: lambda items: encode_logs(self.logs(items)).SerializeToString(),
        }[signal]

    def lines(self, signal: Signal) -> Callable[[Sequence[Any]], bytes]:
        """What makes one JSON object a line of a slice of this signal."""
        return {
            Signal.TRACES: lambda items: _lines(self.spans(items)),
            Signal.METRICS: lambda items: _lines([self.metrics(items)]),
            Signal.LOGS: lambda items: _lines(self.logs(items)),
        }[signal]

    # --- spans ------------------------------------------------------------------------------------

    def spans(self, spans: Sequence[model.Span]) -> list[ReadableSpan]:
        """As the SDK has them."""
        return [self._span(one) for one in spans]

    def _span(self, span: model.Span) -> ReadableSpan:
        context = span.context
        parent = None
        if span.parent_id:
            parent = SpanContext(
                context.trace_id, span.parent_id, span.parent_remote, TraceFlags(context.flags)
            )
        error = span.error
        return ReadableSpan(
            span.name,
            context=_context(context),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(one.name, one.attributes, one.time_ns) for one in span.events],
            links=[Link(_context(one.context), one.attributes) for one in span.links],
            kind=_KINDS[span.kind],
            status=_UNSET if error is None else Status(StatusCode.ERROR, error),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=self._scope,
        )

    # --- log records ------------------------------------------------------------------------------

    def logs(self, logs: Sequence[model.Log]) -> list[ReadableLogRecord]:
        """As the SDK has them."""
        observed_ns = self._now_ns()
        return [self._log(one, observed_ns) for one in logs]

    def _log(self, log: model.Log, observed_ns: int) -> ReadableLogRecord:
        context = Context()
        if log.context is not None:
            context = set_span_in_context(NonRecordingSpan(_context(log.context)), context)
        record = LogRecord(
            timestamp=log.time_ns,
            observed_timestamp=observed_ns,
            context=context,
            severity_text=log.severity_text,
            severity_number=SeverityNumber(log.severity),
            body=log.body,
            attributes=log.attributes,
            event_name=log.event or None,
        )
        return ReadableLogRecord(record, self._resource, self._scope)

    # --- metrics ----------------------------------------------------------------------------------

    def metrics(self, points: Sequence[model.Point]) -> sdk.MetricsData:
        """As the SDK has them, points of one instrument together."""
        now_ns = self._now_ns()
        grouped: dict[Instrument, list[model.Point]] = {}
        for point in points:
            grouped.setdefault(point.instrument, []).append(point)
        found = [
            sdk.Metric(one.name, one.description, one.unit, self._data(one.kind, of_it, now_ns))
            for one, of_it in grouped.items()
        ]
        scope = sdk.ScopeMetrics(self._scope, found, "")
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])

    def _data(
        self, kind: Kind, points: Sequence[model.Point], now_ns: int
    ) -> sdk.Sum | sdk.Gauge | sdk.Histogram:
        if kind is Kind.HISTOGRAM:
            of_buckets = [
                self._histogram(one, now_ns) for one in points if isinstance(one, model.Histogram)
            ]
            return sdk.Histogram(of_buckets, _CUMULATIVE)
        numbers = [
            sdk.NumberDataPoint(
                one.attributes,
                0 if kind is Kind.GAUGE else one.start_ns or self._start_ns,
                now_ns,
                one.value,
                _exemplars(one.exemplars),
            )
            for one in points
            if isinstance(one, model.Number)
        ]
        if kind is Kind.GAUGE:
            return sdk.Gauge(numbers)
        return sdk.Sum(numbers, _CUMULATIVE, is_monotonic=True)

    def _histogram(self, point: model.Histogram, now_ns: int) -> sdk.HistogramDataPoint:
        return sdk.HistogramDataPoint(
            attributes=point.attributes,
            start_time_unix_nano=point.start_ns or self._start_ns,
            time_unix_nano=now_ns,
            count=sum(point.counts),
            sum=point.sum,
            bucket_counts=point.counts,
            explicit_bounds=point.instrument.buckets,
            min=_NOT_KEPT,
            max=_NOT_KEPT,
            exemplars=_exemplars(point.exemplars),
        )


def _context(context: TraceContext) -> SpanContext:
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(
        context.trace_id,
        context.span_id,
        is_remote=False,
        trace_flags=TraceFlags(context.flags),
        trace_state=state,
    )


def _exemplars(exemplars: Sequence[model.Exemplar]) -> list[Exemplar]:
    return [
        Exemplar({}, float(one.value), one.time_ns, one.context.span_id, one.context.trace_id)
        for one in exemplars
    ]


def _lines(items: Sequence[ReadableSpan | ReadableLogRecord | sdk.MetricsData]) -> bytes:
    return "".join(f"{one.to_json(indent=None)}\n" for one in items).encode()
