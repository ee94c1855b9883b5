"""What the gateway notes of a request that is traced, for the monitor to make spans of.

A record is made on the request's path, so it is plain values and nothing is formatted: the spans
(``sidecar/monitor/spans.py``), with their names, attributes and children, are made elsewhere and
later, with the ids and times that are said here.
"""

from __future__ import annotations

from typing import NamedTuple


class SpanRecord(NamedTuple):
    """One request whose trace is sampled, as it was.

    Attributes:
        traceparent: the W3C header that names the request's own (SERVER) span, sampled.
        tracestate: as the caller sent it, or ``""``.
        parent_id: the caller's span, 0 where the trace begins here.
        client_span: the span of the call to another server, whose ``traceparent`` that server was
            given; 0 where the variant was executed in process.
        request_id: our identity of the request.
        model, version, variant: which copy answered, or failed; ``variant`` without the version.
            What got to none has the model's name as it was asked for, and nothing else.
        transport: ``grpc``, ``stream`` or ``http``.
        outcome: ``"OK"`` or the class of the error.
        start_ns, end_ns: wall clock: the body was there, the answer was encoded.
        queue_ns, decode_ns, execute_ns, encode_ns: the stages, in the order in which they ran.
        rows: of the request's batch.
        executed: whether it was an execution of its own (not joined with others in a batch).
        cached: answered from the cache.
        fallback: key of the variant that failed before this one answered, or ``""``.
        bytes_in, bytes_out: sizes on the wire.
    """

    traceparent: str
    tracestate: str
    parent_id: int
    client_span: int
    request_id: str
    model: str
    version: str
    variant: str
    transport: str
    outcome: str
    start_ns: int
    end_ns: int
    queue_ns: int
    decode_ns: int
    execute_ns: int
    encode_ns: int
    rows: int
    executed: bool
    cached: bool
    fallback: str
    bytes_in: int
    bytes_out: int
