"""gRPC to another server: connections, what may be passed on, and what its failures mean here."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from sidecar.errors import (
    ArtifactError,
    CancelledError,
    DeadlineError,
    RequestError,
    UpstreamError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.config_runtime import ClientTlsConfig, RemoteConfig

logger = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]
OnCall = Callable[[Callable[[], None]], None]

_SERVICE = "/inference.GRPCInferenceService/"

#: Connections to one server. All calls of a channel share one HTTP/2 connection: one TCP stream, in
#: which a large tensor's frames hold up the small requests behind them, one flow-control window,
#: and the server's limit on concurrent streams (often 100), behind which calls wait unseen. Two
#: double all three. In front of a Python server on two cores neither two nor four were measurably
#: faster than one, so this is headroom, not a tuned number.
_CONNECTIONS = 2

#: Longer than what servers take for abuse: gRPC's own limit is one ping in five minutes, after
#: which it answers GOAWAY "too_many_pings". It also turns on TCP_USER_TIMEOUT, which notices a peer
#: that vanished within ``_KEEPALIVE_TIMEOUT_MS`` of unacknowledged data.
_KEEPALIVE_MS = 330_000
_KEEPALIVE_TIMEOUT_MS = 10_000

#: Between attempts to connect. A request never waits for one that follows (no wait_for_ready), so
#: frequent attempts only cost a refused SYN; gRPC's default would leave a restarted server alone
#: for up to two minutes.
_RECONNECT_MIN_MS, _RECONNECT_MAX_MS = 50, 500
#: One attempt: a server in the pod or the cluster that takes longer is not there.
_CONNECT_TIMEOUT_MS = 3_000

_RESERVED = frozenset({
    "te", "content-type", "content-length", "user-agent", "host", "connection", "keep-alive",
    "proxy-connection", "transfer-encoding", "upgrade",
})  # fmt: skip
_KEY = re.compile(r"[0-9a-z_.-]+")
_MAX_TEXT = 2_000

#: Statuses that gRPC makes up on this side name addresses, sockets and paths: nothing for clients.
_LOCAL = re.compile(
    r"failed to connect|connect(ion)? (refused|reset|failed)|connection (reset|refused|closed)"
    r"|socket closed|broken pipe|recvmsg|sendmsg|goaway|endpoint|name resolution|dns "
    r"|ipv[46]:|unix:|handshake|keepalive|tcp_|stream (removed|refused)|transport",
    re.IGNORECASE,
)


class UnreachableError(UpstreamError):
    """There is no connection to the other server, or it broke."""


def channel_options(config: RemoteConfig) -> list[tuple[str, Any]]:
    """The channel arguments for a remote server."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MIN_MS),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MAX_MS),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),  # named so, but a time limit
        # A restarted pod may have another address; the default looks it up twice a minute.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Otherwise channels to one address share one connection behind our back.
        ("grpc.use_local_subchannel_pool", 1),
        # A pod's http_proxy is for the internet, not for the server beside us.
        ("grpc.enable_http_proxy", 0),
    ]
    if config.tls is not None and config.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", config.tls.server_name))
    return options


def credentials(tls: ClientTlsConfig) -> grpc.ChannelCredentials:
    """Read the PEM files.

    Raises:
        ArtifactError: a file cannot be read, or is not PEM. (gRPC would only fail to connect.)
    """
    return grpc.ssl_channel_credentials(
        root_certificates=_pem(tls.ca, "ca"),
        private_key=_pem(tls.key, "key"),
        certificate_chain=_pem(tls.certificate, "certificate"),
    )


def _pem(path: Path | None, setting: str) -> bytes | None:
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"runtime.tls.{setting}: {path} cannot be read: {error.strerror}"
        raise ArtifactError(message) from None
    if b"-----BEGIN " not in data:
        message = f"runtime.tls.{setting}: {path} is not a PEM file (no -----BEGIN line in it)"
        raise ArtifactError(message)
    return data


def passable(metadata: Metadata, admin_token: str | None) -> list[tuple[str, str | bytes]]:
    """The metadata that may go on to another server (or come back from it).

    Left out: what belongs to one hop, what gRPC would refuse (and fail the call for), and our own
    admin token, which is nobody else's business.
    """
    passed: list[tuple[str, str | bytes]] = []
    for name, value in metadata:
        key = name.lower()
        if key in _RESERVED or key.startswith("grpc-") or not _KEY.fullmatch(key):
            continue
        if key.endswith("-bin") != isinstance(value, bytes):
            continue
        if isinstance(value, str):
            if not (value.isascii() and value.isprintable()):
                continue
            if key == "authorization" and admin_token is not None:
                kind, _, token = value.partition(" ")
                # As it would be read here: the scheme's case does not matter.
                if kind.lower() == "bearer" and token.strip() == admin_token:
                    continue
        passed.append((key, value))
    return passed


def domain_error(error: grpc.RpcError, timeout_s: float | None) -> RequestError:
    """What a failed call means to our own caller."""
    status = error.code()
    code: str = "UNKNOWN" if status is None else status.name
    details: str = (error.details() or "").strip()
    if code == "DEADLINE_EXCEEDED":
        within = "in time" if timeout_s is None else f"within {timeout_s:.3g} s"
        return DeadlineError(f"the upstream server did not answer {within}")
    if code == "CANCELLED":
        return CancelledError("the request was cancelled before the upstream server answered")
    if code == "UNAVAILABLE" and (not details or _LOCAL.search(details)):
        logger.debug("upstream unavailable: %s", details)
        return UnreachableError("the upstream server cannot be reached", code)
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        details += "; the sidecar's own limit is this variant's runtime.max_message_bytes"
    if len(details) > _MAX_TEXT:
        details = details[: _MAX_TEXT - 1] + "…"
    return UpstreamError(details or f"the upstream server answered {code}", code)


class Upstream:
    """The connections to one server. Thread-safe."""

    def __init__(self, config: RemoteConfig) -> None:
        options = channel_options(config)
        self._config = config
        # Typed loosely: the stubs know neither calls without serializers nor bytes in metadata.
        self._channels: list[Any]
        if config.tls is None:
            self._channels = [
                grpc.insecure_channel(config.address, options) for _ in range(_CONNECTIONS)
            ]
        else:
            secret = credentials(config.tls)
            self._channels = [
                grpc.secure_channel(config.address, secret, options) for _ in range(_CONNECTIONS)
            ]
        # No serializers: bytes go in and come out as they are.
        self._infers = [channel.unary_unary(_SERVICE + "ModelInfer") for channel in self._channels]
        self._streams = [
            channel.stream_stream(_SERVICE + "ModelStreamInfer") for channel in self._channels
        ]
        self._turns = itertools.count()
        #: Connections whose last call found no server. A server that comes back is found by each
        #: at its own next attempt: until then requests take those that stand.
        self._down = [False] * _CONNECTIONS
        self._closed = False

    def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """Call a method that is none of inference, on every connection at once.

        So which of them stand is known before a request takes one.

        Returns:
            The first connection's answer that has one.

        Raises:
            RequestError: none has; see ``domain_error``.
        """
        try:
            calls = [
                channel.unary_unary(_SERVICE + method).future(request, timeout=timeout_s)
                for channel in self._channels
            ]
        except ValueError as error:
            raise self._not_sent(error) from None
        answers: list[bytes] = []
        failed: list[RequestError] = []
        for connection, call in enumerate(calls):
            try:
                answers.append(call.result())
                self._down[connection] = False
            except grpc.RpcError as error:
                failed.append(self._failed(connection, error, timeout_s))
            except grpc.FutureCancelledError:
                failed.append(CancelledError("the connection was closed"))
        if not answers:
            raise failed[0]
        return answers[0]

    def infer(
        self, body: bytes, timeout_s: float, metadata: Metadata, on_call: OnCall | None = None
    ) -> tuple[bytes, Any]:
        """Call ``ModelInfer``; give the answer's bytes, and the call (for its metadata).

        Raises:
            RequestError: see ``domain_error``.
        """
        connection = self._pick()
        method: Any = self._infers[connection]
        try:
            if on_call is None:
                answer, call = method.with_call(body, timeout=timeout_s, metadata=metadata)
            else:
                # Only a future can be cancelled by another thread. It costs 80 µs more than a
                # blocking call: its answer comes through the channel's polling thread.
                call = method.future(body, timeout=timeout_s, metadata=metadata)
                on_call(call.cancel)
                answer = call.result()
        except grpc.RpcError as error:
            raise self._failed(connection, error, timeout_s) from error
        except grpc.FutureCancelledError:
            message = "the request was cancelled before the upstream server answered"
            raise CancelledError(message) from None
        except ValueError as error:
            raise self._not_sent(error) from None
        return answer, call

    def stream(
        self,
        bodies: Iterator[bytes],
        timeout_s: float | None,
        metadata: Metadata,
        on_call: OnCall | None = None,
    ) -> Iterator[bytes]:
        """Call ``ModelStreamInfer``; give each element's bytes. The call ends with the iterator.

        Raises:
            RequestError: see ``domain_error``.
        """
        connection = self._pick()
        method: Any = self._streams[connection]
        try:
            call = method(bodies, timeout=timeout_s, metadata=metadata)
        except ValueError as error:
            raise self._not_sent(error) from None
        if on_call is not None:
            on_call(call.cancel)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._failed(connection, error, timeout_s) from error
        finally:
            call.cancel()  # our reader left early; without effect when the call is over

    def _pick(self) -> int:
        """The next connection in turn; one that is down only if they all are."""
        turn = next(self._turns)
        for connection in range(turn, turn + _CONNECTIONS):
            if not self._down[connection % _CONNECTIONS]:
                return connection % _CONNECTIONS
        return turn % _CONNECTIONS

    def _failed(
        self, connection: int, error: grpc.RpcError, timeout_s: float | None
    ) -> RequestError:
        meaning = domain_error(error, timeout_s)
        meaning.__cause__ = error
        self._down[connection] = isinstance(meaning, UnreachableError)
        return meaning

    def _not_sent(self, error: ValueError) -> UpstreamError:
        """grpcio's ValueErrors: a closed channel, or metadata that it refuses."""
        if self._closed:
            return UpstreamError("this variant has been unloaded", "UNAVAILABLE")
        logger.warning("a call was not sent: %s", error)
        return UpstreamError("the request could not be sent to the upstream server", "INTERNAL")

    def close(self) -> None:
        """Close the connections; calls under way are cancelled. Idempotent."""
        self._closed = True
        for channel in self._channels:
            channel.close()
