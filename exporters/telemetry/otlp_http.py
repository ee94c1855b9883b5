"""OTLP over HTTP/1.1: one attempt at a time, with one deadline for all of it.

Clients that take a timeout mean each read by it: a backend that sends a byte every few seconds
holds them for ever. Here h11 does the protocol, and every wait is for what is left of the attempt.
Redirects are not followed: headers with credentials would go along. Proxies are not used.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import threading
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import h11
from typing_extensions import override

from exporters.telemetry.delivery import Sender, SendError, Sent
from exporters.telemetry.otlp_answer import ANSWER_BYTES_MAX, read_answer
from exporters.telemetry.settings import Backend, Signal

#: What may be tried again, after the specification of OTLP.
_RETRY = {429, 502, 503, 504}
_READ_BYTES = 16 * 1024
#: How long closing waits for an attempt that it has just interrupted.
_CLOSE_S = 1.0


class HttpSender(Sender):
    """Sends one signal's requests to one URL, over one connection that is kept."""

    def __init__(self, backend: Backend, signal: Signal) -> None:
        parts = urlsplit(backend.endpoint)
        self._tls = _tls(backend) if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._signal, self._gzip = signal, backend.compression == "gzip"
        self._headers = [
            ("host", parts.netloc.rpartition("@")[2]),
            ("content-type", "application/x-protobuf"),
            ("user-agent", "model-sidecar-otlp"),
            *((key.lower(), value) for key, value in backend.headers.items()),
        ]
        if self._gzip:
            self._headers.append(("content-encoding", "gzip"))
        self._socket: socket.socket | None = None
        self._protocol = h11.Connection(h11.CLIENT)
        self._closed = False
        self._using = threading.Lock()  # the socket is closed by who holds it

    @override
    def send(self, payload: bytes, timeout_s: float) -> Sent:
        with self._using:
            return self._send(payload, monotonic() + timeout_s)

    @override
    def close(self) -> None:
        self._closed = True
        if (connection := self._socket) is not None:
            # Wakes a thread that waits for an answer; closing alone would not, and would give the
            # descriptor to somebody else while it waits.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._using.acquire(timeout=_CLOSE_S):
            self._hang_up()
            self._using.release()

    def _send(self, payload: bytes, until: float) -> Sent:
        body = gzip.compress(payload, 1) if self._gzip else payload
        kept = self._socket is not None
        try:
            try:
                response, answer = self._exchange(body, until)
            except (ConnectionError, h11.RemoteProtocolError):
                self._hang_up()
                if not kept or self._closed:
                    raise
                # A connection kept for long was closed by the other side: that is no failure.
                response, answer = self._exchange(body, until)
        except h11.RemoteProtocolError as error:
            self._hang_up()
            raise SendError("retries", f"no answer of HTTP: {error}", retry=True) from error
        except (OSError, h11.LocalProtocolError) as error:
            self._hang_up()
            text = str(error) or type(error).__name__
            raise SendError("retries", text, retry=not self._closed) from error
        return self._judge(response, answer)

    def _exchange(self, body: bytes, until: float) -> tuple[h11.Response, bytes]:
        """One request and its answer. Raises OSError (TimeoutError) and h11's errors."""
        connection = self._socket or self._connect(until)
        headers = [*self._headers, ("content-length", str(len(body)))]
        request = h11.Request(method="POST", target=self._target, headers=headers)
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        connection.settimeout(_left(until))
        connection.sendall(b"".join(self._protocol.send(event) or b"" for event in events))
        response, answer = None, bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                connection.settimeout(_left(until))
                self._protocol.receive_data(connection.recv(_READ_BYTES))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                answer += event.data
                if len(answer) > ANSWER_BYTES_MAX:
                    self._hang_up()
                    break
            elif isinstance(event, h11.EndOfMessage):
                self._reuse()
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed without an answer")
            # Interim responses (100, 103) are passed over.
        assert response is not None  # h11 gives no data before it
        return response, bytes(answer)

    def _connect(self, until: float) -> socket.socket:
        connection = socket.create_connection((self._host, self._port), _left(until))
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection.settimeout(_left(until))
                connection = self._tls.wrap_socket(connection, server_hostname=self._host)
            if self._closed:
                raise ConnectionAbortedError("shut down")
        except BaseException:
            connection.close()
            raise
        self._socket, self._protocol = connection, h11.Connection(h11.CLIENT)
        return connection

    def _reuse(self) -> None:
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _judge(self, response: h11.Response, answer: bytes) -> Sent:
        code = response.status_code
        headers = {bytes(key): bytes(value) for key, value in response.headers}
        if 200 <= code < 300:
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if answer and kind not in {b"application/x-protobuf", b"application/json"}:
                text = f"{code} with {kind.decode('latin-1') or 'no content type'}: {answer[:60]!r}"
                raise SendError("garbage", f"no answer of OTLP: {text}", retry=False)
            return read_answer(self._signal, answer, as_json=kind == b"application/json")
        retry = code in _RETRY
        after = headers.get(b"retry-after", b"")
        raise SendError(
            "retries" if retry else "refused",
            f"{code} {bytes(response.reason).decode('latin-1')}",
            retry=retry,
            # A date is not looked at: the two clocks may differ.
            after_s=float(after) if after.isdigit() else None,
        )


def _tls(backend: Backend) -> ssl.SSLContext:
    for name in (backend.certificate, backend.client_certificate, backend.client_key):
        if name:
            Path(name).read_bytes()  # names the file that is not there, which ssl does not
    context = ssl.create_default_context(cafile=backend.certificate or None)
    if backend.client_certificate:
        context.load_cert_chain(backend.client_certificate, backend.client_key or None)
    return context


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError("no whole answer in time")
    return left
