"""``ModelStreamInfer``: requests are worked on side by side and answered in order.

A stream has two threads: one reads, one writes; the work itself is done on the work pool, so that
an idle stream holds up nothing. How many requests of one stream are in flight is bounded: beyond
it the reader stops reading, and HTTP/2's flow control stops the client.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from sidecar.errors import (
    CancelledError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UpstreamError,
)
from sidecar.gateway import forward, path, record, sticky
from sidecar.gateway.deadline import NO_DEADLINE_S, set_deadline
from sidecar.gateway.messages import InferRequest, InferResponse
from sidecar.gateway.pages import Timing
from sidecar.gateway.tracing import RequestTrace, Traced, working_on
from sidecar.protocol import codec, wire
from sidecar.protocol.encode import encode_response
from sidecar.protocol.fields import encode_varint
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.status import client_message, status_of
from sidecar.runtimes.base import ForwardingRuntime

if TYPE_CHECKING:
    from sidecar.gateway.core import Gateway
    from sidecar.gateway.registry import Copy

logger = logging.getLogger(__name__)

#: Requests of one stream in flight.
_WINDOW = 32
#: Requests of a forwarded stream that wait for their answers, and are counted.
_SENT_MAX = 4096
#: How often a thread that waits looks whether the stream still lives, seconds.
_LOOK_S = 0.5
#: Field 2 of ModelStreamInferResponse, an embedded message.
_INFER_RESPONSE_TAG = bytes([(2 << 3) | 2])

Metadata = Sequence[tuple[str, str | bytes]]


def serve_stream(
    gateway: Gateway,
    bodies: Iterator[bytes],
    context: grpc.ServicerContext,
    metadata: Metadata,
    request_id: str,
    traceparent: str,
    tracestate: str = "",
) -> Iterator[bytes]:
    """Answer a stream. Yields serialized ``ModelStreamInferResponse`` messages."""
    errors_end_it = any(
        key == "triton_grpc_error" and str(value).lower() == "true" for key, value in metadata
    )
    first = next(bodies, None)
    if first is None:
        return
    caller = _Caller(request_id, traceparent, tracestate, metadata)
    try:
        remote = _remote_target(gateway, first, metadata)
        if remote is not None:
            yield from _forward(gateway, remote, chain((first,), bodies), context, metadata, caller)
            return
    except RequestError as error:
        if errors_end_it:
            trace = caller.begin(gateway)
            gateway.count_failure(
                "stream", error, 0, trace, request_id=request_id, nbytes=len(first)
            )
            _end(context, error)
        # The first request is answered by its error below, like any other.
    reader = _Reader(gateway, chain((first,), bodies), context, caller)
    try:
        for slot in reader.slots():
            element = slot.result()
            if errors_end_it and slot.error is not None:
                _end(context, slot.error)
            yield element
    finally:
        reader.stop()


class _Caller(NamedTuple):
    """Whose stream it is: the call's identity and trace context, as received."""

    request_id: str
    traceparent: str
    tracestate: str
    metadata: Metadata

    def begin(self, gateway: Gateway) -> RequestTrace | None:
        """The trace of one request: each is a child of the caller's span, or begins its own."""
        tracing = gateway.tracing
        return None if tracing is None else tracing.begin(self.traceparent, self.tracestate)


def _end(context: grpc.ServicerContext, error: Exception) -> None:
    code = grpc.StatusCode[status_of(error).grpc]
    context.abort(code, client_message(error))


class _Slot:
    """The answer to one request of the stream, once it is there."""

    __slots__ = ("_done", "_element", "error")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._element = b""
        self.error: Exception | None = None

    def set(self, element: bytes, error: Exception | None = None) -> None:
        self._element, self.error = element, error
        self._done.set()

    def result(self) -> bytes:
        self._done.wait()
        return self._element


class _Reader:
    """Reads requests and puts them on the work pool."""

    def __init__(
        self,
        gateway: Gateway,
        bodies: Iterator[bytes],
        context: grpc.ServicerContext,
        caller: _Caller,
    ) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self._context = context
        self._caller = caller
        self._slots: queue.Queue[_Slot | None] = queue.Queue(_WINDOW)
        self._stopped = threading.Event()
        threading.Thread(target=self._read, name="grpc-stream-reader", daemon=True).start()

    def slots(self) -> Iterator[_Slot]:
        """One slot a request, in order; ends with the client's side of the stream."""
        while (slot := self._slots.get()) is not None:
            yield slot

    def stop(self) -> None:
        """The writer is done (or the client is gone): stop reading."""
        self._stopped.set()

    def _read(self) -> None:
        try:
            for number, body in enumerate(self._bodies):
                slot = _Slot()
                if not self._put(slot):
                    return
                self._submit(slot, body, number)
        except Exception:  # noqa: BLE001 - grpcio ends the iterator so when the client goes away
            logger.debug("a stream ended by the client")
        finally:
            self._put(None)

    def _put(self, slot: _Slot | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._slots.put(slot, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def _submit(self, slot: _Slot, body: bytes, number: int) -> None:
        """Count the request in from here on: its body is held while it waits for a thread, too."""
        admission = self._gateway.admission
        try:
            admission.enter_request()
            try:
                admission.enter_bytes(len(body))
            except OverloadedError:
                admission.leave_request(0)
                raise
        except OverloadedError as error:
            self._gateway.count_failure(
                "stream", error, 0, self._caller.begin(self._gateway),
                request_id=self._identity(number), nbytes=len(body),
            )  # fmt: skip
            slot.set(_error_element(body, error), error)
            return
        self._gateway.pool.put(self._work, slot, body, number, monotonic_ns())

    def _identity(self, number: int) -> str:
        """One call, many requests: each has an identity of its own, made from the call's."""
        return f"{self._caller.request_id}.{number}"

    def _work(self, slot: _Slot, body: bytes, number: int, received_ns: int) -> None:
        trace = self._caller.begin(self._gateway)
        if trace is not None:
            working_on(trace)
        try:
            element, failure = self._infer(body, number, received_ns, trace), None
        except Exception as error:
            if not isinstance(error, RequestError):
                logger.error("a streamed request failed by a fault of the server", exc_info=error)
            element, failure = _error_element(body, error), error
        finally:
            self._gateway.admission.leave_request(len(body))
            if trace is not None:
                working_on(None)
        slot.set(element, failure)

    def _infer(
        self, body: bytes, number: int, received_ns: int, trace: RequestTrace | None
    ) -> bytes:
        gateway, started = self._gateway, monotonic_ns()
        request_id = self._identity(number)
        try:
            request = codec.parse_request(body, request_id)
        except Exception as error:
            ns = monotonic_ns() - received_ns
            gateway.count_failure(
                "stream", error, ns, trace, request_id=request_id, nbytes=len(body)
            )
            raise
        request.transport, request.traceparent = "stream", self._caller.traceparent
        request.trace = trace
        if keys := gateway.registry.sticky:
            request.point = sticky.of_metadata(keys, request.model_name, self._caller.metadata)
        request.received_ns, request.started_ns = received_ns, started
        request.parse_ns = monotonic_ns() - started
        # A stream's own deadline is the whole stream's; a request has its `timeout`.
        remaining_s = self._context.time_remaining()
        set_deadline(request, started, remaining_s, gateway.config.gateway.default_timeout_s)
        if gateway.tap is not None:
            gateway.tap.consider(request, "stream", body)
        return path.infer(gateway, request, _encode_element, lambda: not self._context.is_active())


def _encode_element(response: InferResponse) -> tuple[bytes, int]:
    response.parameters["triton_final_response"] = True
    body = encode_response(response)
    return wrap(body), len(body)


def wrap(response: bytes) -> bytes:
    """A ``ModelStreamInferResponse`` around a serialized ``ModelInferResponse``, unparsed."""
    return b"".join((_INFER_RESPONSE_TAG, encode_varint(len(response)), response))


def _error_element(body: bytes, error: Exception) -> bytes:
    message = pb.ModelStreamInferResponse(error_message=client_message(error))
    try:
        envelope = wire.scan_request(body)
        message.infer_response.id = envelope.id
        message.infer_response.model_name = envelope.model_name
    except InvalidRequestError:
        pass  # not even its id can be read; the error says so
    return message.SerializeToString()


# --- in front of another server -------------------------------------------------------------------


def _remote_target(gateway: Gateway, body: bytes, metadata: Metadata) -> forward.Target | None:
    envelope = wire.scan_request(body)
    point = sticky.of_metadata(gateway.registry.sticky, envelope.model_name, metadata)
    return forward.target(gateway, envelope, point)


class _Sent:
    """The requests of a forwarded stream that are not answered yet, oldest first.

    Which request an answer belongs to is the other server's matter: an element counts for the
    oldest, which is right wherever each request has one answer, in order. Where a request has
    several, the rest count for nobody, or for the next: as many requests as were answered are
    counted in any case, and their times are the times between answers.
    """

    def __init__(self, gateway: Gateway, copy: Copy, caller: _Caller) -> None:
        self._gateway, self._copy, self._caller = gateway, copy, caller
        #: The first request's trace, which is known before it: the whole call belongs to it there,
        #: since one call has one context.
        self.trace = caller.begin(gateway)
        self._waiting: deque[InferRequest] = deque(maxlen=_SENT_MAX)
        self._count = 0

    def add(self, body: bytes, envelope: wire.Envelope) -> None:
        """A request goes out. (Called by the thread that sends.)"""
        identity = f"{self._caller.request_id}.{self._count}"
        request = forward.request_of(body, envelope, identity, self._caller.traceparent)
        request.trace = self._caller.begin(self._gateway) if self._count else self.trace
        if isinstance(request.trace, Traced):
            request.trace.headers()  # it was sent on, too, within a call that names the first
        self._count += 1
        request.received_ns = request.started_ns = monotonic_ns()
        request.transport = "stream"
        if self._gateway.tap is not None:
            self._gateway.tap.consider(request, "stream", body, parameters=envelope.parameters)
            # Nothing else holds these bodies, however many answers are outstanding.
            if request.sample is not None and len(self._waiting) >= _WINDOW:
                request.sample.set_aside("tap_dropped_full")
                request.sample = None
        self._waiting.append(request)

    def answered(self, element: bytes, *, failed: bool) -> None:
        """An element has come."""
        if not self._waiting:
            self._gateway.page.add(self._copy.slot, "bytes_out", len(element))
            return
        request = self._waiting.popleft()
        if failed:
            if request.sample is not None:  # an error here does not say whose fault it is
                request.sample.set_aside("tap_unclear")
                request.sample = None
            self._fail(request, UpstreamError("an error element", "UNKNOWN"))
        else:
            forward.record_answer(self._gateway, self._copy, request, request.started_ns, element)

    def failed(self, error: Exception) -> None:
        """The stream has: none of those that wait will be answered."""
        if self._count == 0:
            self.add(b"", wire.Envelope(self._copy.model))  # the one that was to open it
        while self._waiting:
            self._fail(self._waiting.popleft(), error)

    def _fail(self, request: InferRequest, error: Exception) -> None:
        timing = Timing(execute_ns=monotonic_ns() - request.started_ns)
        record.failed(self._gateway, request, self._copy, request.received_ns, error, timing)


def _forward(
    gateway: Gateway,
    target: forward.Target,
    bodies: Iterator[bytes],
    context: grpc.ServicerContext,
    metadata: Metadata,
    caller: _Caller,
) -> Iterator[bytes]:
    """The whole stream goes to the other server, which may answer any number of times."""
    _, copy = target
    runtime: Any = copy.runtime
    assert isinstance(runtime, ForwardingRuntime)
    sent = _Sent(gateway, copy, caller)

    def checked() -> Iterator[bytes]:
        for body in bodies:
            envelope = wire.scan_request(body)
            forward.check_stays(gateway, envelope, copy)
            sent.add(body, envelope)
            yield body

    remaining_s = context.time_remaining()
    try:
        elements: Any = runtime.forward_stream(
            checked(),
            timeout_s=remaining_s if remaining_s < NO_DEADLINE_S else None,
            metadata=forward.onward(metadata, caller.request_id, sent.trace),
            on_call=lambda cancel: forward.cancel_with(context, cancel),
        )
        with closing(elements):
            for element in elements:
                renamed, failed = wire.override_element(element, copy.model, copy.version)
                sent.answered(renamed, failed=failed)
                yield renamed
    except RequestError as caught:
        error = forward.whose(caught, context)
        sent.failed(error)
        _end(context, error)
    except GeneratorExit:
        sent.failed(CancelledError("the client went away"))
        raise
    except Exception as fault:
        logger.exception("forwarding a stream to %s failed", copy.key)
        sent.failed(fault)
        text = "forwarding the stream failed"
        _end(context, UnavailableError(text))
        raise AssertionError from fault
