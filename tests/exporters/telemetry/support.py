"""What the tests of telemetry share: settings that are quick, and items to tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exporters.instruments import INFERENCE_DURATION, REQUESTS, ROUTE_VERSION
from exporters.telemetry import Bounds, Exporter, Settings, Telemetry
from exporters.telemetry.context import RANDOM, SAMPLED, TraceContext
from exporters.telemetry.model import Exemplar, Histogram, Log, Number, Span, SpanKind
from tests.support.otlp_receiver import GrpcReceiver, HttpReceiver, Receiver

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0xB7AD6B7169203331
START_NS = 1_760_000_000_123_456_789
VARIANT = {"model.name": "digits", "model.version": "2", "variant": "int8"}
RECEIVERS: dict[Exporter, type[Receiver]] = {
    Exporter.OTLP_GRPC: GrpcReceiver,
    Exporter.OTLP_HTTP: HttpReceiver,
}
#: Longer than any machine takes: what is waited for comes much earlier.
LONG_S = 60.0


def context(span_id: int = SPAN_ID, *, sampled: bool = True, state: str = "") -> TraceContext:
    return TraceContext(TRACE_ID, span_id, RANDOM | (SAMPLED if sampled else 0), state)


def span(number: int = 1, **more: Any) -> Span:
    given: dict[str, Any] = {
        "name": "inference.GRPCInferenceService/ModelInfer",
        "context": context(number),
        "start_ns": START_NS,
        "end_ns": START_NS + 1_500_000,
        "kind": SpanKind.SERVER,
        "attributes": {"rpc.system.name": "grpc", "model.name": "digits", "rows": number},
    }
    return Span(**{**given, **more})


def log(text: str = "loaded", **more: Any) -> Log:
    return Log(text, START_NS, **more)


def duration(counts: dict[int, int], total: float, **more: Any) -> Histogram:
    """A histogram of stage ``execute`` with ``counts`` in the buckets of these indices."""
    buckets = [counts.get(i, 0) for i in range(len(INFERENCE_DURATION.buckets) + 1)]
    attributes = {**VARIANT, "role": "serving", "stage": "execute"}
    return Histogram(INFERENCE_DURATION, buckets, total, attributes, **more)


def points() -> list[Number | Histogram]:
    exemplar = Exemplar(0.004, START_NS + 7, context(0x22))
    return [
        Number(REQUESTS, 41, {**VARIANT, "outcome": "success", "reason": ""}, START_NS),
        Number(REQUESTS, 1, {**VARIANT, "outcome": "fail", "reason": ""}, START_NS),
        Number(ROUTE_VERSION, 0.25, VARIANT),
        duration({3: 30, 6: 11}, 0.075, start_ns=START_NS, exemplars=[exemplar]),
    ]


def settings(exporter: Exporter, endpoint: str = "", **more: Any) -> Settings:
    """Quick to send, patient with a slow machine, and metrics only when they are asked for."""
    given: dict[str, Any] = {
        "exporter": exporter,
        "endpoint": endpoint,
        "timeout_s": 30.0,
        "interval_s": 3600.0,
        "resource": {"service.name": "checkout", "service.instance.id": "a-1"},
        "prometheus": "127.0.0.1:0",
        "spans": Bounds(delay_s=0.01, breath_s=0.0),
        "logs": Bounds(delay_s=0.01, breath_s=0.0),
    }
    return Settings(**{**given, **more})


@contextmanager
def telling(told: Settings, **more: Any) -> Iterator[Telemetry]:
    """A running ``Telemetry``, stopped without much ado at the end."""
    telemetry = Telemetry(told, version="1.2.3", **more)
    try:
        yield telemetry
    finally:
        telemetry.shutdown(0.5)


def attributes(item: Any) -> dict[str, Any]:
    """The attributes of any message of OTLP."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in item.attributes}
