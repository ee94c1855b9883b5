"""The HTTP listener: uvicorn in a thread of its own, with bounds, TLS, drain and stop.

``HttpServer(config, backend).start()`` → ``drain()`` → ``stop(timeout_s)``. The routes are in
``http_app.py``, what they ask of the core in ``api.py``.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from sidecar.errors import ConfigError, Problem
from sidecar.gateway.api import Backend
from sidecar.gateway.http_app import HttpApp
from sidecar.gateway.http_listen import Server
from sidecar.gateway.http_protocol import HttpLimits, protocol_class
from sidecar.gateway.tls import http_context
from sidecar.listening import BACKLOG, address_of, listen_tcp, listen_unix

if TYPE_CHECKING:
    from sidecar.config import GatewayConfig

logger = logging.getLogger(__name__)


class HttpServer:
    """The protocol over HTTP.

    Args:
        config: the gateway's; ``config.http`` must be set.
        backend: the core.
        parser: ``"auto"`` takes httptools where it is installed, else h11.
        limits: what no client has a reason to exceed.
    """

    def __init__(
        self,
        config: GatewayConfig,
        backend: Backend,
        *,
        parser: str = "auto",
        limits: HttpLimits | None = None,
    ) -> None:
        if config.http is None:
            message = "gateway.http is null: there is no HTTP listener to start"
            raise ValueError(message)
        self._http = config.http
        self._limits = limits = limits or HttpLimits()
        self._share_port = config.workers > 1
        self._app = HttpApp(config, config.http, backend, limits)
        self._protocol = protocol_class(parser, limits)
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._unix_path: str | None = None

    def start(self, address: str | None = None) -> str:
        """Listen, and serve in a thread.

        Args:
            address: instead of the configured one (a port that another worker has got already).

        Returns:
            The address that is listened on, ``host:port`` (the real port where 0 was configured) or
            ``unix:path``.

        Raises:
            ConfigError: the address cannot be listened on, or the TLS files are wrong.
        """
        context = None if self._http.tls is None else http_context(self._http.tls, "gateway.http")
        listener = self._listen(address or self._http.address)
        bound = address_of(listener)
        config = uvicorn.Config(
            self._app.asgi,
            http=self._protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            workers=1,
            # No configuration of the process's logging, which is not uvicorn's; errors only: a
            # client that sends garbage must not fill the log.
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=self._limits.keep_alive_s,
        )
        config.load()
        # A context of our own: uvicorn's would allow only the cipher list named "TLSv1".
        config.ssl = context
        self._server = Server(config, self._started.set)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, listener), name="http", daemon=True
        )
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return bound

    def drain(self) -> None:
        """Answer on, but ask every client to close its connection; readiness is the backend's."""
        self._app.draining = True

    def stop(self, timeout_s: float) -> None:
        """Accept nothing more, let requests in flight end, and close. Idempotent.

        Args:
            timeout_s: for requests in flight; then they are answered with 503.
        """
        self.drain()
        if self._server is None or self._thread is None:
            self._app.close()
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(timeout_s)
        self._server.should_exit = True
        self._thread.join(math.ceil(timeout_s) + 5)
        if self._thread.is_alive():
            logger.error("the HTTP server did not stop within %g s", timeout_s + 5)
        self._app.close()
        if self._unix_path is not None:
            Path(self._unix_path).unlink(missing_ok=True)

    def _run(self, server: Server, listener: socket.socket) -> None:
        try:
            # Not the main thread, so neither the runner nor uvicorn installs signal handlers.
            with asyncio.Runner(loop_factory=self._loop_factory()) as runner:
                runner.run(server.serve(sockets=[listener]))
        except BaseException as error:  # a thread's end must be seen by whoever waits for it
            self._failure = error
            if self._started.is_set():
                logger.exception("the HTTP server ended")
        finally:
            listener.close()
            self._started.set()

    def _loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        if self._unix_path is not None:
            return asyncio.new_event_loop  # uvloop takes no bound Unix socket here
        try:
            import uvloop
        except ImportError:
            return asyncio.new_event_loop
        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory

    def _listen(self, address: str) -> socket.socket:
        try:
            if address.startswith("unix:"):
                self._unix_path = address.removeprefix("unix:")
                return listen_unix(self._unix_path)
            return listen_tcp(address, share_port=self._share_port)
        except OSError as error:
            reason = error.strerror or str(error)
            problem = Problem("gateway.http.address", f"cannot listen on {address}: {reason}")
            raise ConfigError("gateway", [problem]) from None
