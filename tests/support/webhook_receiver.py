"""A receiver of webhooks on a real socket: keeps what comes, and answers what the test says."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Hook:
    """One POST: the parsed body and the headers, lower case."""

    path: str
    body: Any
    headers: dict[str, str]


class WebhookReceiver:
    """A context manager.

    Attributes:
        answer: makes status, headers and body of a request; ``None``: it is never answered.
    """

    def __init__(self) -> None:
        self.received: list[Hook] = []
        self.answer: Callable[[Hook], tuple[int, dict[str, str], bytes] | None] = lambda _: (
            200, {}, b"rolled back",
        )  # fmt: skip
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def says(self, code: int, text: str = "", **headers: str) -> None:
        self.answer = lambda _: (code, headers, text.encode())

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}/rollback"

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {key.lower(): value for key, value in self.headers.items()}
                hook = Hook(self.path, json.loads(body), headers)
                receiver.received.append(hook)
                answer = receiver.answer(hook)
                if answer is None:
                    receiver._released.wait()
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)
                    return
                code, more, content = answer
                self.send_response(code)
                for key, value in {**more, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request, client_address):
                """A client that has gone away."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
