"""The monitor's HTTP listener: late labels, and the verdict that delivery tools ask for.

Plaintext, as its gRPC listener is; started only where `monitor.http` is set. Bounded in
connections, and in the size and the time of what is sent; whoever is one too many is answered 503.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import ConfigError, Problem
from sidecar.gateway.http_listen import Server
from sidecar.gateway.http_protocol import HttpLimits, protocol_class
from sidecar.listening import address_of, listen_tcp, listen_unix

logger = logging.getLogger(__name__)

#: Delivery tools and label jobs: a few, each for a moment.
_CONNECTIONS_MAX = 64
#: A batch of labels has at most 8 MiB, and refuses more by itself; nothing else is near it.
_BODY_BYTES_MAX = 16 * 2**20
#: How long a client may send no byte of what it has announced.
_STALL_S = 30.0


class MonitorHttp:
    """``start`` once, ``stop`` once.

    Args:
        address: ``host:port`` or ``unix:path``.
        routes: what is answered, beside ``GET /healthz``.
        stall_s: how long a client may send nothing of what it has announced.
    """

    def __init__(
        self, address: str, routes: Sequence[BaseRoute], *, stall_s: float = _STALL_S
    ) -> None:
        self._address = address
        app = Starlette(
            routes=[Route("/healthz", _healthz, methods=["GET"]), *routes],
            exception_handlers={HTTPException: _refused, ClientDisconnect: _gone},
        )
        self._app = _Bounded(app, stall_s)
        self._limits = HttpLimits(
            head_timeout_s=stall_s, body_stall_s=stall_s, connections=_CONNECTIONS_MAX
        )
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()

    def start(self) -> str:
        """Listen, and serve in a thread; return the address with the real port.

        Raises:
            ConfigError: it cannot be listened on.
        """
        unix = self._address.startswith("unix:")
        try:
            path = self._address.removeprefix("unix:")
            listener = listen_unix(path) if unix else listen_tcp(self._address)
        except OSError as error:
            what = f"cannot listen on {self._address}: {error.strerror or error}"
            raise ConfigError("monitor", [Problem("monitor.http", what)]) from None
        config = uvicorn.Config(
            self._app, http=protocol_class("auto", self._limits), ws="none", lifespan="off",
            interface="asgi3", log_config=None, log_level="error", access_log=False,
            proxy_headers=False, server_header=False, limit_concurrency=_CONNECTIONS_MAX,
            timeout_keep_alive=self._limits.keep_alive_s,
        )  # fmt: skip
        config.load()
        server = self._server = Server(config, self._started.set)

        def run() -> None:
            try:
                # Not the main thread, so nobody installs signal handlers.
                asyncio.run(server.serve(sockets=[listener]))
            except Exception:
                logger.exception("the monitor's HTTP listener has ended")
            finally:
                listener.close()
                self._started.set()

        self._thread = threading.Thread(target=run, name="monitor-http", daemon=True)
        self._thread.start()
        self._started.wait()
        return address_of(listener)

    def stop(self, timeout_s: float) -> None:
        """Accept nothing more, let requests in flight end for so long, and close. Idempotent."""
        if self._server is None or self._thread is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(timeout_s)
        self._server.should_exit = True
        # A handler that hangs is left behind: the evidence has yet to be written.
        self._thread.join(math.ceil(timeout_s) + 1)
        if self._address.startswith("unix:"):
            Path(self._address.removeprefix("unix:")).unlink(missing_ok=True)


class _Bounded:
    """Around the application: what is sent is bounded, in bytes and in the time between them."""

    def __init__(self, app: ASGIApp, stall_s: float) -> None:
        self._app = app
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            try:
                message = await asyncio.wait_for(receive(), self._stall_s)
            except TimeoutError:
                raise HTTPException(408, f"nothing came for {self._stall_s:g} s", _CLOSE) from None
            size += len(message.get("body", b""))
            if size > _BODY_BYTES_MAX:
                raise HTTPException(413, f"the body has more than {_BODY_BYTES_MAX} bytes", _CLOSE)
            return message

        try:
            await self._app(scope, bounded, send)
        except Exception:
            # Its caller has been answered with 500 already.
            logger.exception("%s %s failed", scope.get("method"), scope.get("path"))


#: The rest of such a body is not read.
_CLOSE = {"connection": "close"}


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody hears it


async def _healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})
