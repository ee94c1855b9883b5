"""A receiver of webhooks on a real socket: keeps what comes, answers as it is told."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep
from typing import Any, Self

from exporters.alerts.alert import Alert, Severity, State

WITHIN_S = 30.0
#: 2026-03-01T12:00:00Z
NOON_NS = 1_772_366_400 * 10**9


def alert(**changes: Any) -> Alert:
    """One that fires, with everything an alert can have."""
    fields: dict[str, Any] = {
        "id": "d-17", "name": "ModelRollback", "state": State.FIRING,
        "severity": Severity.CRITICAL, "summary": "digits 3 is worse than 2",
        "text": "In 812 pairs, 41 errors of version 3 alone.\nVersion 2 answers again.",
        "started_ns": NOON_NS,
        "labels": {"model": "digits", "new": "3/onnx", "previous": "2/onnx", "metric": "error"},
        "values": {"log_e": 7.25, "threshold": 4.605170186, "pairs": 812, "action": "switch"},
        "links": {"dashboard": "https://grafana.example/d/1", "runbook": "https://wiki.example/r"},
    }  # fmt: skip
    return Alert(**{**fields, **changes})


def resolved(**changes: Any) -> Alert:
    """The same, a minute later."""
    return alert(**{"state": State.RESOLVED, "ended_ns": NOON_NS + 60 * 10**9, **changes})


@dataclass(frozen=True)
class Got:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What is answered; ``hang``: nothing, until the receiver is stopped; ``drop``: the connection
    is closed once the request was read."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    hang: bool = False
    drop: bool = False


class AlertReceiver:
    """A context manager; ``reply`` answers the n-th request (from 0)."""

    def __init__(
        self,
        reply: Callable[[int], Reply] = lambda _: Reply(),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.reply = reply
        self.got: list[Got] = []
        self._port = port
        self._tls = tls
        self._going = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                with receiver._lock:
                    number = len(receiver.got)
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.got.append(Got(self.command, self.path, headers, body))
                reply = receiver.reply(number)
                if reply.hang:
                    receiver._going.wait(WITHIN_S)
                if reply.hang or reply.drop:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # who called has hung up

        self._server = Server(("127.0.0.1", self._port), Handler)
        self.port = self._server.server_address[1]
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going.set()
        self._server.shutdown()
        self._server.server_close()

    def wait(self, count: int) -> list[Got]:
        """So many requests, once they have come."""
        deadline = monotonic() + WITHIN_S
        while len(self.got) < count:
            assert monotonic() < deadline, f"{len(self.got)} of {count} requests came"
            sleep(0.01)
        return self.got
