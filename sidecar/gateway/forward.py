"""In front of another server: the request's bytes go through, and only routing looks at them.

What cannot go as bytes goes by the ordinary path (``path.py``), which gives the other server
arrays: shared memory (the regions are registered here, not there) and cached models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from sidecar.errors import (
    CancelledError,
    InvalidRequestError,
    RequestError,
    UnavailableError,
)
from sidecar.gateway import path, record
from sidecar.gateway.messages import InferRequest, InferResponse
from sidecar.gateway.pages import Timing
from sidecar.gateway.registry import Copy, Entry
from sidecar.protocol import codec, wire
from sidecar.protocol.encode import encode_response
from sidecar.runtimes.base import Forwarded, ForwardingRuntime

if TYPE_CHECKING:
    from sidecar.gateway.core import Gateway
    from sidecar.gateway.tracing import RequestTrace

Target = tuple[Entry, Copy]
Metadata = Sequence[tuple[str, str | bytes]]

_CONTEXT = frozenset({"x-request-id", "traceparent", "tracestate"})


def target(gateway: Gateway, envelope: wire.Envelope, point: float | None = None) -> Target | None:
    """Where a request is forwarded to; ``None``: it takes the ordinary path, with the same
    ``point``, or it would be drawn twice."""
    entry, copy = gateway.registry.route(envelope.model_name, envelope.model_version, point)
    if not copy.forwards or envelope.uses_shared_memory or copy.cached:
        return None
    return entry, copy


def check_stays(gateway: Gateway, envelope: wire.Envelope, copy: Copy) -> None:
    """Let a later request of a forwarded stream go where its first one went: a stream is not drawn
    anew, as long as its version has a share at all.

    Raises:
        InvalidRequestError: it is for another model or version, or has tensors in shared memory.
        UnavailableError: its version was taken off the route. (It would be served on, and a version
            that was rolled back keep its streams for ever.)
    """
    entry = gateway.registry.entry(envelope.model_name)
    drawn = not envelope.model_version and entry.serving.get(copy.version) is copy
    if drawn and copy.version not in entry.shares:
        text = f"version '{copy.version}' of model '{copy.model}', which this stream goes to, gets "
        text += "no more requests; open another stream"
        raise UnavailableError(text)
    if drawn and not envelope.uses_shared_memory:
        return
    found = target(gateway, envelope)
    if found is None or found[1] is not copy:
        text = f"this stream goes to model '{copy.model}' on another server; open another "
        text += "stream for another model or version, and for shared memory"
        raise InvalidRequestError(text)


def request_of(
    body: bytes, envelope: wire.Envelope, request_id: str, traceparent: str
) -> InferRequest:
    """What is known of a request whose tensors are not parsed: for its deadline, and to count it.

    Of the parameters only `timeout` is read; one that makes no sense is the other server's to
    refuse, in its own words.
    """
    timeout_us = envelope.parameters.get("timeout")
    known = type(timeout_us) is int and timeout_us > 0
    return InferRequest(
        envelope.model_name, envelope.model_version, envelope.id, request_id, [],
        parameters={"timeout": timeout_us} if known and timeout_us is not None else {},
        nbytes=len(body), traceparent=traceparent,
    )  # fmt: skip


def unary(
    gateway: Gateway,
    where: Target,
    body: bytes,
    request: InferRequest,
    metadata: Metadata,
    context: Any,
) -> bytes:
    """Forward one request; answer with the other server's bytes, and its metadata.

    Raises:
        RequestError: the other server's error, with its own code, or a fault on the way.
    """
    entry, copy = where
    fallback = path.fallback_for(entry, copy, request.model_version)
    began = monotonic_ns()
    try:
        with gateway.pool.waiting():
            answer = _send(copy, fallback, body, request, metadata, context)
        # By the version that answers here: it may well have another number there.
        response = wire.override_response(
            answer.body, model_name=copy.model, model_version=copy.version, id=request.id
        )
    except RequestError as caught:
        error = whose(caught, context)
        if fallback is None or not record.is_server_fault(error) or path.deadline_over(request):
            timing = _timing(request, began, monotonic_ns())
            record.failed(gateway, request, copy, request.received_ns, error, timing)
            raise error from None
        record.fell_back(gateway, request, copy, fallback, error)
        return _fall_back(gateway, copy, fallback, body, request, context)
    if answer.metadata:
        identity = ("x-request-id", request.request_id)
        context.set_trailing_metadata((identity, *without_identity(answer.metadata)))
    record_answer(gateway, copy, request, began, response)
    return response


def _send(
    copy: Copy,
    fallback: Copy | None,
    body: bytes,
    request: InferRequest,
    metadata: Metadata,
    context: Any,
) -> Forwarded:
    runtime = copy.runtime
    assert isinstance(runtime, ForwardingRuntime)
    limits_s: list[float] = []
    if request.deadline_ns is not None:
        limits_s.append((request.deadline_ns - monotonic_ns()) / 1e9)
    if fallback is not None and copy.fallback_after_ms is not None:
        limits_s.append(copy.fallback_after_ms / 1e3)
    return runtime.forward(
        body,
        timeout_s=min(limits_s, default=None),
        metadata=onward(metadata, request.request_id, request.trace),
        on_call=lambda cancel: cancel_with(context, cancel),
    )


def onward(
    metadata: Metadata, request_id: str, trace: RequestTrace | None
) -> list[tuple[str, str | bytes]]:
    """The caller's metadata for another server: there, too, the request goes by our identity, and
    where tracing is on its span is a child of ours."""
    mine: list[tuple[str, str | bytes]] = [("x-request-id", request_id)]
    if trace is None:
        return [*without_identity(metadata), *mine]
    mine += trace.headers()
    return [*(item for item in metadata if item[0] not in _CONTEXT), *mine]


def without_identity(metadata: Metadata) -> Iterator[tuple[str, str | bytes]]:
    """Metadata without the request's identity: here and there it goes by ours."""
    return (item for item in metadata if item[0] != "x-request-id")


def whose(error: RequestError, context: Any) -> RequestError:
    """The error of a call; a cancellation that did not come from our client is the server's."""
    if isinstance(error, CancelledError) and context.is_active():
        return path.cancelled_there()
    return error


def record_answer(
    gateway: Gateway, copy: Copy, request: InferRequest, began_ns: int, response: bytes
) -> None:
    """Count an answered request, note when, mirror it. ``began_ns``: when it was sent on."""
    done = monotonic_ns()
    timing = _timing(request, began_ns, done)
    start = request.received_ns
    record.answered(gateway, request, copy, timing, start, done, len(response), response)


def _timing(request: InferRequest, began_ns: int, done_ns: int) -> Timing:
    """Everything from when it was sent on is execution."""
    queue_ns = max(0, request.started_ns - request.received_ns)
    return Timing(queue_ns=queue_ns, execute_ns=done_ns - began_ns)


def cancel_with(context: Any, cancel: Any) -> None:
    """When our client goes away, so does the call behind us."""
    if not context.add_callback(cancel):
        cancel()


def _fall_back(
    gateway: Gateway,
    copy: Copy,
    fallback: Copy,
    body: bytes,
    request: InferRequest,
    context: Any,
) -> bytes:
    """Answer by the fallback copy, from the same bytes, within the same deadline."""
    try:
        parsed = codec.parse_request(body, request.request_id)
    except RequestError as error:  # only now is it looked at
        record.failed(gateway, request, copy, request.received_ns, error)
        raise
    parsed.traceparent, parsed.deadline_ns = request.traceparent, request.deadline_ns
    parsed.received_ns, parsed.started_ns = request.received_ns, request.started_ns
    parsed.sample, parsed.trace = request.sample, request.trace
    parsed.transport = request.transport
    return path.infer(
        gateway, parsed, _encode_marked(fallback), lambda: not context.is_active(), on=fallback
    )


def _encode_marked(fallback: Copy) -> path.Encode[bytes]:
    def encode(response: InferResponse) -> tuple[bytes, int]:
        response.parameters["sidecar_fallback"] = fallback.config.key
        body = encode_response(response)
        return body, len(body)

    return encode
