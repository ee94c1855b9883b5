"""From what was noted to spans: of requests, of what the mirror ran, of drift windows. Pure.

Names and attributes follow OpenTelemetry's conventions for RPC and HTTP, and those of the metrics
(``exporters/instruments.py``) where a span and a metric say the same, so that one leads to the
other. No tensor value and no request id is ever an attribute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from exporters.telemetry.context import TraceContext, new_context, new_span_id, parse
from exporters.telemetry.model import Attributes, Link, Span, SpanKind, Value
from sidecar import errors
from sidecar.monitor.measured_evidence import variant_attributes
from sidecar.monitor.measures import CALLS
from sidecar.protocol.status import INTERNAL, TABLE, Status
from sidecar.traces import SpanRecord

Entropy = Callable[[int], bytes]

#: A stage of decoding or encoding that took less is a gap in the picture, not a span of its own:
#: each span costs the monitor 20 µs, and most requests have both under a tenth of this.
STAGE_SPAN_NS = 1_000_000
#: What makes a server's span an error by the conventions for gRPC; the rest is the caller's doing.
_SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
#: Of these the stage that was under way when they failed is known: the execution.
_OF_EXECUTION = frozenset({"ExecutionError", "UpstreamError"})
_ROUTE = "/v2/models/{name}/infer"


def _statuses() -> Iterator[tuple[str, Status]]:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.RequestError):
            known = (TABLE[base] for base in kind.__mro__ if base in TABLE)
            yield name, next(known, INTERNAL)


#: Name of an error's class → what a caller got. (Another server's own status is not noted.)
_STATUSES: Mapping[str, Status] = MappingProxyType(dict(_statuses()))


# --- requests -------------------------------------------------------------------------------------


def served(record: SpanRecord) -> list[Span]:
    """The SERVER span of a request, with its own ids and times, and its children.

    Empty where the record names no sampled trace, or no transport that is known.
    """
    context = parse(record.traceparent, record.tracestate)
    if context is None or not context.sampled or record.transport not in CALLS:
        return []
    name = CALLS[record.transport][1]
    error = None
    if record.outcome != "OK" and is_server_fault(record.transport, record.outcome):
        error = record.outcome
    root = Span(
        name, context, record.start_ns, record.end_ns, SpanKind.SERVER, record.parent_id,
        bool(record.parent_id), _attributes(record), error=error,
    )  # fmt: skip
    return [root, *_children(record, context)]


def is_server_fault(transport: str, outcome: str) -> bool:
    """Whether an error's class is the server's fault, as the conventions see it."""
    status = _STATUSES.get(outcome, INTERNAL)
    return status.http >= 500 if transport == "http" else status.grpc in _SERVER_FAULTS


def _attributes(record: SpanRecord) -> Attributes:
    system, method = CALLS[record.transport]
    attributes: dict[str, Value] = {"rpc.system.name": system, "rpc.method": method}
    status = None if record.outcome == "OK" else _STATUSES.get(record.outcome, INTERNAL)
    if record.transport == "http":
        attributes["http.request.method"] = "POST"
        attributes["http.route"] = _ROUTE
        attributes["http.response.status_code"] = 200 if status is None else status.http
    else:
        attributes["rpc.response.status_code"] = "OK" if status is None else status.grpc
    if status is not None:
        attributes["error.type"] = record.outcome
    names = {
        "model.name": record.model,
        "model.version": record.version,
        "variant": record.variant,
        "fallback": record.fallback,
    }
    attributes |= {name: value for name, value in names.items() if value}
    attributes["rows"] = record.rows
    attributes["cached"] = record.cached
    attributes["request.size"] = record.bytes_in
    attributes["response.size"] = record.bytes_out
    return attributes


def _children(record: SpanRecord, parent: TraceContext) -> Iterator[Span]:
    """The stages. Those before the execution are laid out from the start of the request, those
    from it on from its end: what lies between, nobody has measured."""
    start_ns, end_ns = record.start_ns, record.end_ns
    queued_ns = min(start_ns + record.queue_ns, end_ns)
    decoded_ns = min(queued_ns + record.decode_ns, end_ns)
    encoding_ns = max(end_ns - record.encode_ns, decoded_ns)
    executing_ns = max(encoding_ns - record.execute_ns, decoded_ns)
    if record.queue_ns:
        yield _stage("queue", parent, 1, start_ns, queued_ns)
    if record.decode_ns >= STAGE_SPAN_NS:
        yield _stage("decode", parent, 2, queued_ns, decoded_ns)
    if record.client_span:
        yield _call(record, parent, executing_ns, encoding_ns)
    elif record.execute_ns:
        execute = _stage("execute", parent, 3, executing_ns, encoding_ns)
        # Joined with others, it took the whole batch's time.
        execute.attributes = {"joined": not record.executed}
        if record.outcome in _OF_EXECUTION:
            execute.error = record.outcome
        yield execute
    if record.encode_ns >= STAGE_SPAN_NS:
        yield _stage("encode", parent, 4, encoding_ns, end_ns)


def _stage(name: str, parent: TraceContext, number: int, start_ns: int, end_ns: int) -> Span:
    # From the parent's id, which is random: a record that is told twice is the same spans twice.
    own = (parent.span_id + number * 0x9E3779B97F4A7C15) % 2**64 or number
    return Span(name, parent.child(own), start_ns, end_ns, parent_id=parent.span_id)


def _call(record: SpanRecord, parent: TraceContext, start_ns: int, end_ns: int) -> Span:
    """The call to another server, under the id that it was given as its parent.

    That server speaks gRPC, whatever the caller does; a stream is one there as well.
    """
    system, method = CALLS["stream" if record.transport == "stream" else "grpc"]
    attributes: dict[str, Value] = {"rpc.system.name": system, "rpc.method": method}
    error = None
    if record.outcome in _OF_EXECUTION or record.outcome in {"DeadlineError", "UnavailableError"}:
        attributes["error.type"] = error = record.outcome
    return Span(
        method, parent.child(record.client_span), start_ns, end_ns, SpanKind.CLIENT,
        parent.span_id, attributes=attributes, error=error,
    )  # fmt: skip


# --- mirrors --------------------------------------------------------------------------------------


def linked(traceparent: str) -> TraceContext | None:
    """The served span that a mirror of it is to link to; ``None``: its trace is not sampled."""
    context = parse(traceparent)
    return context if context is not None and context.sampled else None


def mirror_execute(
    of: TraceContext,
    *,
    variant: str,
    role: str,
    failure: str,
    start_ns: int,
    end_ns: int,
    rows: int,
    entropy: Entropy = os.urandom,
) -> Span:
    """One execution in the monitor: a trace of its own that links to the served span ``of``.

    A child of the served span would make that trace as long as the monitor is late.

    Args:
        variant: key (``model:version/name``) of what was executed.
        role: ``reference``, ``mirror``, ``previous``, ``candidate``, ``serving``, or ``noise`` for
            the second run of a baseline in another batch.
        failure: as in ``Answer``; empty: it gave an answer.
    """
    attributes: dict[str, Value] = {
        **variant_attributes(variant), "role": role, "outcome": failure or "success", "rows": rows,
        # Some backends keep no links (Phoenix): there, it is found by this.
        "served.trace_id": f"{of.trace_id:032x}",
    }  # fmt: skip
    if failure:
        attributes["error.type"] = failure
    return Span(
        "mirror.execute", new_context(sampled=True, entropy=entropy), start_ns, end_ns,
        attributes=attributes, links=(Link(of),), error=failure or None,
    )  # fmt: skip


def mirror_compare(
    parent: Span,
    *,
    candidate: str,
    baseline: str,
    verdict: str,
    rows: int,
    bad_rows: int,
    start_ns: int,
    end_ns: int,
    entropy: Entropy = os.urandom,
) -> Span:
    """Comparing one request's answers, together with others: the times are the micro-batch's.

    Args:
        parent: the execution whose answer was compared.
        verdict: ``PASS``, ``FAIL`` or ``INVALID``, as in ``model_sidecar.comparison.results``.
        rows, bad_rows: of this request, and those of them that disagree.
    """
    attributes: dict[str, Value] = {
        "candidate": candidate, "baseline": baseline, "verdict": verdict, "rows": rows,
        "bad_rows": bad_rows,
    }  # fmt: skip
    return Span(
        "mirror.compare", parent.context.child(new_span_id(entropy)), start_ns, end_ns,
        parent_id=parent.context.span_id, attributes=attributes,
    )  # fmt: skip


# --- drift ----------------------------------------------------------------------------------------


def drift_window(
    model: str,
    *,
    rows: int,
    state: str,
    reference: str,
    start_ns: int,
    end_ns: int,
    entropy: Entropy = os.urandom,
) -> Span:
    """One window that was judged: a trace of its own, from its first row to the verdict.

    Args:
        state: ``ok``, ``suspect``, ``alarm`` or ``insufficient_data``.
        reference: the name of what it was compared with.
        start_ns, end_ns: wall clock.
    """
    attributes: Attributes = {
        "model.name": model, "reference": reference, "rows": rows, "state": state,
    }  # fmt: skip
    context = new_context(sampled=True, entropy=entropy)
    return Span("drift.window", context, start_ns, end_ns, attributes=attributes)
