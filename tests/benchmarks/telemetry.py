"""What telling costs: a span, a log record, a collection; and the end with a backend that is dead.

``python -m tests.benchmarks.telemetry`` prints it, with the SDK's own way beside it.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from exporters.instruments import INFERENCE_DURATION
from exporters.telemetry import Bounds, Exporter, Settings, Signal, Telemetry
from exporters.telemetry.context import RANDOM, SAMPLED, TraceContext
from exporters.telemetry.encode import Encoder
from exporters.telemetry.model import Histogram, Link, Log, Span, SpanKind
from exporters.telemetry.prometheus import exposition
from sidecar.clock import SystemClock
from sidecar.gateway.backlog import Backlog
from sidecar.gateway.messages import InferRequest
from sidecar.gateway.pages import Page, Timing, create_page
from sidecar.gateway.tracing import Traced, Tracing, working_on
from sidecar.monitor.channel_frames import pack_spans
from sidecar.traces import SpanRecord
from tests.support.otlp_receiver import GrpcReceiver, HttpReceiver, silent

ATTRIBUTES = {
    "rpc.system.name": "grpc", "rpc.method": "inference.GRPCInferenceService/ModelInfer",
    "model.name": "digits", "model.version": "2", "variant": "int8", "rows": 8,
}  # fmt: skip
COUNT = 2000
ROUNDS = 5


def a_span(number: int) -> Span:
    context = TraceContext(1 << 100 | number, number + 1, SAMPLED | RANDOM)
    return Span(
        "inference.GRPCInferenceService/ModelInfer", context, 1_760_000_000_000_000_000,
        1_760_000_000_001_500_000, SpanKind.SERVER, 7, attributes=dict(ATTRIBUTES),
        links=[Link(context)] if number % 10 == 0 else (),
    )  # fmt: skip


def each(what: Callable[[], object], count: int) -> float:
    """Microseconds for one of ``count``: the median of ``ROUNDS``, after one round for nothing."""
    taken = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        what()
        taken.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(taken[1:])


def on_the_path() -> None:
    """What a traced request costs in the gateway, and one that is not; without what sends it."""
    descriptor = create_page(1)
    page = Page(descriptor, 1, owner=True)
    os.close(descriptor)
    spans: Backlog[SpanRecord] = Backlog(
        page, "spans_dropped", capacity=COUNT * (ROUNDS + 2), unacknowledged=COUNT, slice_count=32
    )
    spans.open()
    settings = {"ratio": 0.0, "parent": True}
    tracing = Tracing(settings, spans, SystemClock())
    timing = Timing()
    copy: Any = SimpleNamespace(
        model="digits", version="2", config=SimpleNamespace(name="int8"), forwards=False
    )

    def requests(header: str) -> Callable[[], object]:
        def run() -> None:
            for _ in range(COUNT):
                trace = tracing.begin(header, "")
                working_on(trace)
                request = InferRequest("digits", "", "", "id", [], trace=trace)
                if isinstance(trace, Traced):
                    tracing.note(trace, request, copy, timing, 1, 2, "OK", 3)
                working_on(None)

        return run

    def untraced() -> None:
        for _ in range(COUNT):
            InferRequest("digits", "", "", "id", [])

    known = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
    base = each(untraced, COUNT)
    for what, header in (
        ("a request that nobody traces", ""), ("whose caller does not", f"{known}0"),
        ("whose caller does", f"{known}1"),
    ):  # fmt: skip
        line(f"on the path: {what}", f"{each(requests(header), COUNT) - base:.1f} µs")
    taken = spans.take()
    cost = each(lambda: json.dumps(pack_spans(taken), separators=(",", ":")).encode(), len(taken))
    line(f"off it: a span in a slice of {len(taken)}", f"{cost:.1f} µs")
    page.close()


def line(what: str, text: str) -> None:
    print(f"{what:<62} {text}", flush=True)


def handing_over() -> None:
    """With a backend that never answers, so that the thread behind it does nothing meanwhile."""
    with silent() as port:
        bounds = Bounds(items=COUNT * (ROUNDS + 2))
        told = Settings(
            Exporter.OTLP_GRPC, f"http://127.0.0.1:{port}", spans=bounds, logs=bounds,
            interval_s=3600,
        )  # fmt: skip
        telemetry = Telemetry(told)
        spans = [a_span(number) for number in range(COUNT)]
        unsampled = TraceContext(1, 2)
        skipped = [Span("x", unsampled, 1, 2) for _ in range(COUNT)]
        line("make a span", f"{each(lambda: [a_span(n) for n in range(COUNT)], COUNT):.2f} µs")
        line(
            "hand it over", f"{each(lambda: [telemetry.span(one) for one in spans], COUNT):.2f} µs"
        )
        cost = each(lambda: [telemetry.span(one) for one in skipped], COUNT)
        line("hand over one that is not sampled", f"{cost:.2f} µs")
        logs = [Log("loaded digits", 1, attributes=ATTRIBUTES) for _ in range(COUNT)]
        line(
            "hand over a log record",
            f"{each(lambda: [telemetry.log(o) for o in logs], COUNT):.2f} µs",
        )
        telemetry.shutdown(0.2)


def encoding() -> None:
    encoder = Encoder({"service.name": "x"}, "1", now_ns=time.time_ns, start_ns=1)
    spans = [a_span(number) for number in range(COUNT)]
    of_spans = encoder.otlp(Signal.TRACES)
    size_of_slice = Bounds().slice

    def encode(spans: list[Span]) -> bytes:
        slices = range(0, len(spans), size_of_slice)
        return b"".join(of_spans(spans[at : at + size_of_slice]) for at in slices)

    line("encode a span (in the thread)", f"{each(lambda: encode(spans), COUNT):.1f} µs")
    size = len(encode(spans)) / COUNT
    line("  its size", f"{size:.0f} bytes")
    points = [
        Histogram(
            INFERENCE_DURATION, [1000] * 19, 1.5,
            {"model.name": f"m{n}", "model.version": "2", "variant": "int8", "role": "serving",
             "stage": "execute"},
        )
        for n in range(500)
    ]  # fmt: skip
    of_metrics = encoder.otlp(Signal.METRICS)
    line("encode a histogram of 19 buckets", f"{each(lambda: of_metrics(points), 500):.1f} µs")
    cost = each(lambda: exposition(encoder.metrics(points)), 500)
    line("  the same as Prometheus' text", f"{cost:.1f} µs")


def exporting(exporter: Exporter) -> None:
    receivers = {Exporter.OTLP_GRPC: GrpcReceiver, Exporter.OTLP_HTTP: HttpReceiver}
    with receivers[exporter]() as backend:
        bounds = Bounds(items=COUNT, delay_s=0.0, breath_s=0.0)
        telemetry = Telemetry(Settings(exporter, backend.endpoint, spans=bounds, interval_s=3600))

        def send() -> None:
            for number in range(COUNT):
                telemetry.span(a_span(number))
            assert telemetry.flush(60)

        line(
            f"{exporter}: make, hand over, encode, send, receive",
            f"{each(send, COUNT):.0f} µs a span",
        )
        telemetry.shutdown()


def ending() -> None:
    """2,000 spans wait, and the backend accepts and never answers."""
    with silent() as port:
        telemetry = Telemetry(Settings(Exporter.OTLP_GRPC, f"http://127.0.0.1:{port}"))
        for number in range(COUNT):
            telemetry.span(a_span(number))
        start = time.perf_counter()
        telemetry.shutdown()
        line("shutdown, backend silent", f"{time.perf_counter() - start:.2f} s")
        for name, provider in _sdk(f"http://127.0.0.1:{port}"):
            start = time.perf_counter()
            provider.shutdown()
            line(f"  the SDK's, {name}", f"{time.perf_counter() - start:.2f} s")


def _sdk(endpoint: str) -> Iterator[tuple[str, object]]:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource({}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    tracer = provider.get_tracer("x")

    def make() -> None:
        for _ in range(COUNT):
            tracer.start_span("x", attributes=ATTRIBUTES).end()

    line("  a span by the SDK's tracer, for comparison", f"{each(make, COUNT):.1f} µs")
    yield "traces, gRPC", provider


@contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    """Print all of it."""
    with quiet():
        on_the_path()
        handing_over()
        encoding()
        for exporter in (Exporter.OTLP_GRPC, Exporter.OTLP_HTTP):
            exporting(exporter)
        ending()


if __name__ == "__main__":
    main()
