"""OTLP over gRPC: one attempt at a time.

The SDK's own exporter is not used: it does not read partial success, tells a refusal from a failure
only in its log, tries again within its call (up to a minute), and reads ``OTEL_*`` by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from typing_extensions import override

from exporters.telemetry.delivery import Sender, SendError, Sent
from exporters.telemetry.otlp_answer import ANSWER_BYTES_MAX, read_answer
from exporters.telemetry.settings import Backend, Signal

_METHODS = {
    Signal.TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    Signal.METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    Signal.LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
#: What may be tried again, after the specification of OTLP; RESOURCE_EXHAUSTED only when the server
#: says when.
_RETRY = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
_OPTIONS = (
    ("grpc.max_receive_message_length", ANSWER_BYTES_MAX),
    # Else gRPC waits up to two minutes before it looks whether the backend is back.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # A channel of its own: a setting of somebody else's to the same place must not be ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.primary_user_agent", "model-sidecar-otlp"),
)


class GrpcSender(Sender):
    """Sends one signal's requests to one backend."""

    def __init__(self, backend: Backend, signal: Signal) -> None:
        parts = urlsplit(backend.endpoint)
        if parts.scheme == "https":
            channel = grpc.secure_channel(parts.netloc, _credentials(backend), options=_OPTIONS)
        else:
            channel = grpc.insecure_channel(parts.netloc, options=_OPTIONS)
        self._channel, self._signal = channel, signal
        self._call = channel.unary_unary(_METHODS[signal], _as_it_is, _as_it_is)
        self._metadata = tuple((key.lower(), value) for key, value in backend.headers.items())
        gzip = backend.compression == "gzip"
        self._compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression

    @override
    def send(self, payload: bytes, timeout_s: float) -> Sent:
        try:
            answer = self._call(
                payload,
                timeout=timeout_s,
                metadata=self._metadata,
                compression=self._compression,
            )
        except grpc.RpcError as error:
            raise _judged(error) from error
        except ValueError as error:  # the channel was closed meanwhile
            raise SendError("shutdown", str(error), retry=False) from error
        return read_answer(self._signal, answer)

    @override
    def close(self) -> None:
        self._channel.close()


def _as_it_is(data: bytes) -> bytes:
    """Requests are encoded already, and answers are judged by us."""
    return data


def _credentials(backend: Backend) -> grpc.ChannelCredentials:
    def read(name: str) -> bytes | None:
        return Path(name).read_bytes() if name else None

    return grpc.ssl_channel_credentials(
        read(backend.certificate), read(backend.client_key), read(backend.client_certificate)
    )


def _judged(error: grpc.RpcError) -> SendError:
    code, details = error.code(), error.details() or ""
    after_s = _retry_after(error.trailing_metadata() or ())
    retry = code in _RETRY or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and after_s is not None)
    reason = "retries" if retry else "refused"
    return SendError(reason, f"{code.name}: {details}", retry=retry, after_s=after_s)


def _retry_after(metadata: Iterable[Any]) -> float | None:
    """The pause that the server asks for: RetryInfo in the status details, seconds."""
    for key, value in metadata:
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            status = Status.FromString(value)
            for detail in status.details:
                info = RetryInfo()
                if detail.Unpack(info):
                    delay = info.retry_delay
                    return max(0.0, float(delay.seconds) + float(delay.nanos) / 1e9)
        except DecodeError:
            return None
    return None
