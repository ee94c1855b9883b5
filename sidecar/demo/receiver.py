"""Somebody's alert receiver: takes CloudEvents on loopback, and keeps the latest."""

from __future__ import annotations

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from typing_extensions import override

#: An alert is a page of text at most.
_BODY_MAX = 2**20
_KEPT = 100


class AlertReceiver:
    """A context manager; ``url`` is where it listens.

    Attributes:
        url: on a free loopback port.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        taken = self._take

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                try:
                    event = json.loads(self.rfile.read(min(length, _BODY_MAX)))
                except ValueError:
                    self.send_error(400, "not JSON")
                    return
                taken(event)
                self.send_response(204)
                self.end_headers()

            @override
            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the demo has its own screen."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._events.append(event)

    def events(self) -> list[dict[str, Any]]:
        """What has come, the oldest first."""
        with self._lock:
            return list(self._events)
