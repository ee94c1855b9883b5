"""gRPC: bytes in, bytes out. Handlers take and give serialized messages (identity serializers), so
that each body is parsed once, serialized once, and there to be reused by whoever needs a copy."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from sidecar.errors import InvalidRequestError, NotFoundError, RequestError
from sidecar.gateway import forward, grpc_pool, path, sticky
from sidecar.gateway.deadline import set_deadline
from sidecar.gateway.messages import InferResponse
from sidecar.gateway.streams import serve_stream
from sidecar.gateway.tracing import RequestTrace, working_on
from sidecar.protocol import codec, wire
from sidecar.protocol.encode import encode_response
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.status import client_message, status_of

if TYPE_CHECKING:
    from sidecar.gateway.core import Gateway

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
Metadata = Sequence[tuple[str, str | bytes]]

_CODES = {code.name: code for code in grpc.StatusCode}
#: As over HTTP: longer or unprintable ids are replaced by ours, for they end up in logs.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT_MAX = 128


class InferServicer:
    """``ModelInfer`` and ``ModelStreamInfer``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._default_timeout_s = gateway.config.gateway.default_timeout_s
        self._any_remote = any(
            variant.runtime.kind == "remote"
            for model in gateway.config.models
            for variant in model.variants
        )
        self._sticky = gateway.registry.sticky

    def infer(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        """One inference: ``ModelInferRequest`` bytes → ``ModelInferResponse`` bytes."""
        gateway = self._gateway
        metadata = context.invocation_metadata() or ()
        request_id, traceparent, tracestate = identity(gateway, metadata)
        context.set_trailing_metadata((("x-request-id", request_id),))
        if gateway.tracing is None:
            return self._infer(body, context, metadata, request_id, traceparent, None)
        trace = gateway.tracing.begin(traceparent, tracestate)
        working_on(trace)
        try:
            return self._infer(body, context, metadata, request_id, traceparent, trace)
        finally:
            working_on(None)

    def _infer(
        self,
        body: bytes,
        context: grpc.ServicerContext,
        metadata: Metadata,
        request_id: str,
        traceparent: str,
        trace: RequestTrace | None,
    ) -> bytes:
        started = monotonic_ns()
        received = getattr(grpc_pool.current, "received_ns", 0) or started
        remaining_s = context.time_remaining()
        tap = self._gateway.tap
        model = ""
        reached = False  # from there on it is counted with its model
        point: float | None = None
        try:
            if self._any_remote:
                envelope = wire.scan_request(body)
                model = envelope.model_name
                point = sticky.drawn(sticky.of_metadata(self._sticky, model, metadata))
                target = forward.target(self._gateway, envelope, point)
                if target is not None:
                    request = forward.request_of(body, envelope, request_id, traceparent)
                    request.received_ns, request.started_ns = received, started
                    request.trace = trace
                    set_deadline(request, started, remaining_s, self._default_timeout_s)
                    if tap is not None:
                        tap.consider(request, "grpc", body, parameters=envelope.parameters)
                    reached = True
                    return forward.unary(self._gateway, target, body, request, metadata, context)
            request = codec.parse_request(body, request_id)
            request.traceparent, request.trace = traceparent, trace
            request.received_ns, request.started_ns = received, started
            if point is not None:
                request.point = point
            elif self._sticky:
                request.point = sticky.of_metadata(self._sticky, request.model_name, metadata)
            request.parse_ns = monotonic_ns() - started
            set_deadline(request, started, remaining_s, self._default_timeout_s)
            if tap is not None:
                tap.consider(request, "grpc", body)
            reached = True
            return path.infer(self._gateway, request, encode, lambda: not context.is_active())
        except Exception as error:  # noqa: BLE001 - the last stop: a client gets a status, never a trace
            caught: Exception = error
        if not reached:
            self._gateway.count_failure(
                "grpc", caught, monotonic_ns() - received, trace,
                model=model, request_id=request_id, nbytes=len(body),
            )  # fmt: skip
        return abort(context, caught)

    def stream(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """A stream of inferences, answered in order; an error is an element, not the end."""
        metadata = context.invocation_metadata() or ()
        return serve_stream(
            self._gateway, bodies, context, metadata, *identity(self._gateway, metadata)
        )


def identity(gateway: Gateway, metadata: Metadata) -> tuple[str, str, str]:
    """A call's identity (the client's, or one we make), ``traceparent`` and ``tracestate``.

    Several ``tracestate`` are one list; of several ``traceparent`` gRPC itself keeps one.
    """
    request_id = traceparent = tracestate = ""
    for key, value in metadata:
        if key == "x-request-id" and _REQUEST_ID.fullmatch(str(value)):
            request_id = str(value)
        elif key == "traceparent":
            traceparent = str(value)[:_TRACEPARENT_MAX]
        elif key == "tracestate":
            tracestate = f"{tracestate},{value!s}" if tracestate else str(value)
    return request_id or gateway.request_ids.make(), traceparent, tracestate


def count_refusal(
    gateway: Gateway,
    transport: str,
    metadata: Metadata,
    error: Exception,
    nbytes: int = 0,
    received_ns: int = 0,
) -> None:
    """Count a call that was refused before there was a thread for it."""
    ns = monotonic_ns() - received_ns if received_ns else 0
    if gateway.tracing is None:
        gateway.count_failure(transport, error, ns)
        return
    request_id, traceparent, tracestate = identity(gateway, metadata)
    trace = gateway.tracing.begin(traceparent, tracestate)
    gateway.count_failure(transport, error, ns, trace, request_id=request_id, nbytes=nbytes)


def encode(response: InferResponse) -> tuple[bytes, int]:
    """``path.infer``'s encoder for gRPC."""
    body = encode_response(response)
    return body, len(body)


def abort(context: grpc.ServicerContext, error: Exception) -> bytes:
    """End a call with the status and message of an error; always raises."""
    if not isinstance(error, RequestError):
        logger.error("a call failed by a fault of the server", exc_info=error)
    code = _CODES.get(status_of(error).grpc, grpc.StatusCode.INTERNAL)
    context.abort(code, client_message(error))
    raise AssertionError  # abort has raised


class ControlServicer:
    """Every other method of the service.

    Args:
        trusted: the listener is the admin's own, where calls that change state are taken without
            asking where they come from (a token is still asked for).
    """

    def __init__(self, gateway: Gateway, *, trusted: bool) -> None:
        self._gateway = gateway
        self._trusted = trusted

    def methods(self) -> dict[str, Callable[[bytes, grpc.ServicerContext], bytes]]:
        """Method name → handler of serialized messages."""
        gateway = self._gateway
        return {
            "ServerLive": _unary(
                pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=gateway.server_live())
            ),
            "ServerReady": _unary(
                pb.ServerReadyRequest,
                lambda _: pb.ServerReadyResponse(ready=gateway.server_ready()),
            ),
            "ModelReady": _unary(
                pb.ModelReadyRequest,
                lambda r: pb.ModelReadyResponse(ready=_model_ready(gateway, r.name, r.version)),
            ),
            "ServerMetadata": _unary(
                pb.ServerMetadataRequest,
                lambda _: pb.ServerMetadataResponse(**gateway.server_metadata()),  # type: ignore[arg-type]
            ),
            "ModelMetadata": _unary(
                pb.ModelMetadataRequest, lambda r: gateway.model_metadata(r.name, r.version)
            ),
            "ModelConfig": _unary(
                pb.ModelConfigRequest,
                lambda r: pb.ModelConfigResponse(config=gateway.model_config(r.name, r.version)),
            ),
            "ModelStatistics": _unary(
                pb.ModelStatisticsRequest, lambda r: gateway.statistics(r.name, r.version)
            ),
            **{
                method: self._admin(method, getattr(pb, f"{method}Request"))
                for method in _ADMIN_METHODS
            },
        }

    def _admin(self, method: str, kind: Any) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        gateway, trusted = self._gateway, self._trusted

        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            token = _bearer(context.invocation_metadata() or ())
            return _answer(
                kind, body, context, lambda r: gateway.admin(method, r, token, trusted=trusted)
            )

        # Loading takes seconds, and waits for every worker: not on the lane that health is on.
        if method not in ("RepositoryIndex", "SystemSharedMemoryStatus", "CudaSharedMemoryStatus"):
            handle.lane = "slow"  # type: ignore[attr-defined]
        return handle


_ADMIN_METHODS = (
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
)  # fmt: skip


def _bearer(metadata: Metadata) -> str | None:
    for key, value in metadata:
        if key == "authorization" and str(value)[:7].lower() == "bearer ":
            return str(value)[7:].strip()
    return None


def _model_ready(gateway: Gateway, name: str, version: str) -> bool:
    """An unknown model is one that is not ready: Triton's clients get an answer, not an error."""
    try:
        return gateway.model_ready(name, version)
    except NotFoundError:
        return False


def _unary(
    kind: Any, answer: Callable[[Any], Any]
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
        return _answer(kind, body, context, answer)

    return handle


def _answer(
    kind: Any, body: bytes, context: grpc.ServicerContext, answer: Callable[[Any], Any]
) -> bytes:
    try:
        try:
            request = kind.FromString(body)
        except DecodeError:
            text = f"the body is not a {kind.DESCRIPTOR.name} (protobuf cannot decode it)"
            raise InvalidRequestError(text) from None
        message: bytes = answer(request).SerializeToString()
    except Exception as error:  # noqa: BLE001 - the last stop, as above
        caught: Exception = error
    else:
        return message
    return abort(context, caught)


def generic_handler(
    gateway: Gateway, *, trusted: bool = False
) -> grpc.GenericRpcHandler[bytes, bytes]:
    """The whole service, for ``grpc.Server.add_generic_rpc_handlers``."""
    servicer = InferServicer(gateway)

    # Plain functions, because they carry the lane they belong to (see grpc_pool.py).
    def infer(body: bytes, context: grpc.ServicerContext) -> bytes:
        return servicer.infer(body, context)

    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        return servicer.stream(bodies, context)

    infer.lane = "inference"  # type: ignore[attr-defined]
    stream.lane = "stream"  # type: ignore[attr-defined]
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(handle)
        for name, handle in ControlServicer(gateway, trusted=trusted).methods().items()
    }
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(infer)
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
    return grpc.method_handlers_generic_handler(SERVICE, handlers)
