"""A backend of the tests' own: OTLP after the published protos, on a real loopback socket.

gRPC by grpcio, HTTP by the standard library; both keep every request as the parsed message and
answer what the test says. Beside them, servers that are no backend: ``refusing``, ``silent``,
``garbage``, ``dripping``.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.clients.certificates import Files

#: Longer than any machine takes; only so that a broken test ends.
PATIENCE_S = 60.0

_REQUESTS = {
    "traces": trace_service_pb2.ExportTraceServiceRequest,
    "metrics": metrics_service_pb2.ExportMetricsServiceRequest,
    "logs": logs_service_pb2.ExportLogsServiceRequest,
}
_ANSWERS = {
    "traces": trace_service_pb2.ExportTraceServiceResponse,
    "metrics": metrics_service_pb2.ExportMetricsServiceResponse,
    "logs": logs_service_pb2.ExportLogsServiceResponse,
}
_REJECTED = {
    "traces": "rejected_spans", "metrics": "rejected_data_points", "logs": "rejected_log_records",
}  # fmt: skip
_SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
}


@dataclass(frozen=True)
class Received:
    """One request: its signal, the message, and the headers, lower case."""

    signal: str
    message: Any
    headers: dict[str, str]
    connection: str


@dataclass
class Reply:
    """How to answer.

    Attributes:
        code: gRPC's code, or HTTP's status.
        rejected: partial success.
        after_s: the pause that is asked for.
        body: sent in place of the answer, whatever it is (HTTP: with ``kind``).
    """

    code: grpc.StatusCode | int | None = None
    rejected: int = 0
    message: str = ""
    after_s: int | None = None
    body: bytes | None = None
    kind: str = "application/x-protobuf"


def always(reply: Reply) -> Callable[[str], Reply]:
    """The same answer to everything."""
    return lambda signal: reply


@dataclass
class Receiver:
    """What both have in common. ``reply(signal)`` says how to answer; it may block."""

    reply: Callable[[str], Reply] = field(default_factory=lambda: always(Reply()))
    received: list[Received] = field(default_factory=list)
    endpoint: str = ""

    def of(self, signal: str) -> list[Received]:
        """The requests of one signal."""
        return [one for one in list(self.received) if one.signal == signal]

    @property
    def spans(self) -> list[Any]:
        """Every span received, as the proto has it."""
        return [
            span
            for one in self.of("traces")
            for resource in one.message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def records(self) -> list[Any]:
        """Every log record received."""
        return [
            record
            for one in self.of("logs")
            for resource in one.message.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def metrics(self) -> dict[str, Any]:
        """Metric by name; of several requests the last one's."""
        return {
            metric.name: metric
            for one in self.of("metrics")
            for resource in one.message.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def wait(self, done: Callable[[Self], bool]) -> Self:
        """Poll until ``done``."""
        wait_for(lambda: done(self))
        return self

    def keep(self, signal: str, body: bytes, headers: dict[str, str], connection: str) -> Reply:
        message = _REQUESTS[signal].FromString(body)
        self.received.append(Received(signal, message, headers, connection))
        return self.reply(signal)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


def _answer(signal: str, reply: Reply) -> bytes:
    if reply.body is not None:
        return reply.body
    answer = _ANSWERS[signal]()
    if reply.rejected or reply.message:
        setattr(answer.partial_success, _REJECTED[signal], reply.rejected)
        answer.partial_success.error_message = reply.message
    return answer.SerializeToString()


class GrpcReceiver(Receiver):
    """OTLP over gRPC; where certificates are given TLS, which asks for the client's too."""

    def __init__(self, tls: Files | None = None) -> None:
        super().__init__()
        self._tls = tls
        self._server: grpc.Server | None = None

    def start(self) -> None:
        server = grpc.server(ThreadPoolExecutor(8), options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers((_Handlers(self),))
        if self._tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
            self.endpoint = f"http://127.0.0.1:{port}"
        else:
            pair = (self._tls.server_key.read_bytes(), self._tls.server.read_bytes())
            credentials = grpc.ssl_server_credentials(
                [pair], self._tls.ca.read_bytes(), require_client_auth=True
            )
            port = server.add_secure_port("127.0.0.1:0", credentials)
            self.endpoint = f"https://127.0.0.1:{port}"
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(grace=None).wait(PATIENCE_S)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def service(self, details):
        _, service, method = details.method.split("/")
        signal = _SERVICES.get(service)
        if signal is None or method != "Export":
            return None

        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            headers = {key: str(value) for key, value in context.invocation_metadata()}
            reply = self._receiver.keep(signal, body, headers, context.peer())
            if isinstance(reply.code, grpc.StatusCode):
                if reply.after_s is not None:
                    _ask_for_pause(context, reply)
                context.abort(reply.code, reply.message)
            return _answer(signal, reply)

        return grpc.unary_unary_rpc_method_handler(export)


def _ask_for_pause(context: grpc.ServicerContext, reply: Reply) -> None:
    status = Status(code=reply.code.value[0], message=reply.message)
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=reply.after_s)))
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))


class HttpReceiver(Receiver):
    """OTLP over HTTP/1.1; where certificates are given TLS, which asks for the client's too."""

    def __init__(self, tls: Files | None = None) -> None:
        super().__init__()
        self._tls = tls
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # The headers and the body are two writes: else the second waits for an answer.
            disable_nagle_algorithm = True

            def do_POST(self):
                _answer_http(receiver, self)

            def log_message(self, *_):
                pass

        server = _HttpServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if self._tls is not None:
            scheme = "https"
            server.socket = _server_tls(self._tls).wrap_socket(server.socket, server_side=True)
        self.endpoint = f"{scheme}://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._connections: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away."""

    def hang_up(self) -> None:
        """End connections that are kept, as a restarted backend would."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _server_tls(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    context.load_verify_locations(files.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _answer_http(receiver: Receiver, request: BaseHTTPRequestHandler) -> None:
    headers = {key.lower(): value for key, value in request.headers.items()}
    body = request.rfile.read(int(headers["content-length"]))
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    signal = request.path.rpartition("/")[2]
    reply = receiver.keep(signal, body, headers, str(request.client_address))
    answer = _answer(signal, reply)
    if reply.body is None and reply.kind == "application/json":
        answer = json.dumps({"partialSuccess": {"errorMessage": reply.message}}).encode()
    request.send_response(reply.code if isinstance(reply.code, int) else 200)
    request.send_header("Content-Type", reply.kind)
    request.send_header("Content-Length", str(len(answer)))
    if reply.after_s is not None:
        request.send_header("Retry-After", str(reply.after_s))
    request.end_headers()
    request.wfile.write(answer)


# --- what is no backend ---------------------------------------------------------------------------


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Connections are accepted (by the kernel), and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def garbage() -> Iterator[int]:
    """Answers everybody with something else."""
    greeting = b"220 mail.example ESMTP\r\n\x00\xff" * 9
    with _talking(lambda connection, _: connection.sendall(greeting)) as port:
        yield port


@contextlib.contextmanager
def dripping() -> Iterator[int]:
    """A well-formed answer that never ends: a byte every now and then."""

    def drip(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while not stopped.wait(0.02):
            connection.sendall(b"y")

    with _talking(drip) as port:
        yield port


@contextlib.contextmanager
def _talking(talk: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def serve(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(1)
                talk(connection, stopped)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

        def accept() -> None:
            while not stopped.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            stopped.set()
            with contextlib.suppress(OSError):  # wakes the thread that accepts
                socket.create_connection(listener.getsockname(), 1).close()


def wait_for(done: Callable[[], object], what: str = "it") -> None:
    """Poll until ``done()`` is true; fails after ``PATIENCE_S``."""
    deadline = monotonic() + PATIENCE_S
    while not done():
        assert monotonic() < deadline, f"{what} did not happen"
        sleep(0.005)
