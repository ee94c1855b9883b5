"""Span records as a gateway would note them."""

from __future__ import annotations

from typing import Any

from sidecar.traces import SpanRecord

TRACE_ID = 0x0AF7651916CD43DD8448EB211C80319C
SPAN_ID = 0xB7AD6B7169203331
PARENT = 0x00F067AA0BA902B7
START_NS = 1_760_000_000_123_456_789
END_NS = START_NS + 20_000_000


def traceparent(span_id: int = SPAN_ID, trace_id: int = TRACE_ID) -> str:
    return f"00-{trace_id:032x}-{span_id:016x}-03"


def record(**changes: Any) -> SpanRecord:
    """A request that the model ``digits:2/onnx`` answered over gRPC, in 20 ms."""
    fields: dict[str, Any] = {
        "traceparent": traceparent(), "tracestate": "vendor=1", "parent_id": PARENT,
        "client_span": 0, "request_id": "r-1", "model": "digits", "version": "2",
        "variant": "onnx", "transport": "grpc", "outcome": "OK", "start_ns": START_NS,
        "end_ns": END_NS, "queue_ns": 1_000_000, "decode_ns": 100_000, "execute_ns": 10_000_000,
        "encode_ns": 100_000, "rows": 3, "executed": True, "cached": False, "fallback": "",
        "bytes_in": 100, "bytes_out": 50,
    }  # fmt: skip
    return SpanRecord(**{**fields, **changes})
