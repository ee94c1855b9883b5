"""The demo's waterfall: what the monitor told the console, drawn."""

from __future__ import annotations

from exporters.telemetry import Exporter, Settings, Signal, Telemetry
from exporters.telemetry.context import SAMPLED, TraceContext
from exporters.telemetry.model import Link, Span, SpanKind
from exporters.telemetry.settings import Override
from sidecar.demo.traces import choose, draw, read

START_NS = 1_760_000_000_000_000_000
TRACE = 0x0AF7651916CD43DD8448EB211C80319C
NAMES = {"model.name": "digits", "model.version": "2", "variant": "onnx"}


def span(name, span_id, start_us, end_us, *, trace=TRACE, parent=0, links=(), **attributes):
    return Span(
        name, TraceContext(trace, span_id, SAMPLED), START_NS + start_us * 1000,
        START_NS + end_us * 1000, SpanKind.INTERNAL, parent, attributes=attributes,
        links=[Link(TraceContext(TRACE, one, SAMPLED)) for one in links],
    )  # fmt: skip


def told(path, *spans):
    """A server's log with those spans in it, as telemetry writes them."""
    overrides = {signal: Override(Exporter.NONE) for signal in (Signal.METRICS, Signal.LOGS)}
    with path.open("wb") as log:
        log.write(b"ready\n")
        telemetry = Telemetry(Settings(Exporter.CONSOLE, overrides=overrides), console=log)
        for one in spans:
            telemetry.span(one)
        telemetry.shutdown()
        log.write(b'{"name": "cut off, {\n')
    return path


def test_the_request_with_the_most_to_see_is_drawn(tmp_path):
    rpc = {"rpc.system.name": "grpc"}
    spans = read(
        told(
            tmp_path / "log",
            span("Infer", 1, 0, 500, **NAMES, **rpc),
            span("Infer", 2, 0, 1000, **NAMES, **rpc),
            span("queue", 3, 0, 250, parent=2),
            span("execute", 4, 250, 750, parent=2),
            span("mirror", 5, 9000, 11000, trace=7, links=[2], **{**NAMES, "variant": "int8"}),
            span("Infer", 6, 0, 100, **{**NAMES, "model.name": "other"}, **rpc),
        )
    )
    trace = choose(spans, "digits")
    assert trace.plain() == {
        "trace_id": "0x0af7651916cd43dd8448eb211c80319c", "variant": "digits:2/onnx", "ms": 1.0,
        "children": [{"name": "queue", "ms": 0.25}, {"name": "execute", "ms": 0.5}],
        "mirrors": [{"variant": "digits:2/int8", "ms": 2.0}],
    }  # fmt: skip
    head, whole, queue, execute, _, mirror = draw(trace)
    assert head.endswith("one request to digits:2/onnx")
    assert [line.count("█") for line in (whole, queue, execute, mirror)] == [32, 8, 16, 31]
    assert execute.index("█") == queue.index("█") + 8  # it begins where waiting ended
    assert mirror.endswith("▶    2.00 ms +0.0 s")


def test_nothing_was_traced(tmp_path):
    assert choose(read(told(tmp_path / "log")), "digits") is None
