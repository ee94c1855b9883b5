"""``grpc.health.v1``, where a watcher that goes away cannot stop it.

grpcio-health-checking's servicer sends while it holds its lock, and a send waits for the server's
event thread; that thread, when a watcher cancels, waits for the same lock. One watcher that cancels
while the state changes can so stop all health checks of a process for ever, and its shutdown with
them. Here the lock is held for bookkeeping only, and watchers are told on threads of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

#: So many watchers that do not read can be waited for before news is late for the others.
_THREADS = 2

#: The service that is SERVING as soon as its process answers, whatever is loaded or drained: for
#: probes of start-up and liveness. Readiness is the service without a name.
LIVE = "live"

_Statuses = health_pb2.HealthCheckResponse
Send = Callable[[Any], Any]


class _Watcher:
    """One call of ``Watch``. Its fields belong to the servicer's lock."""

    __slots__ = ("closed", "is_sending", "send", "sent")

    def __init__(self, send: Send) -> None:
        self.send = send
        self.sent: int | None = None
        self.is_sending = False
        self.closed = False


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The state of services by name, for ``Check``, and for any number of ``Watch``; ``LIVE`` is
    among them from the beginning.

    No thread is held by a watcher. One that does not read gets the latest state when it does, not
    every state in between. Add it to a server with ``add_to_server``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: dict[str, int] = {LIVE: _Statuses.SERVING}
        self._watchers: dict[str, set[_Watcher]] = {}
        self._threads = futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="health")

    def add_to_server(self, server: grpc.Server) -> None:
        """Offer both methods on ``server``; call it for any number of servers."""

        # A function of its own for each instance: grpcio reads these attributes from it.
        def watch(request: Any, context: Any, send_response_callback: Send) -> None:
            self._watch(request, context, send_response_callback)

        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        watch.experimental_thread_pool = self._threads  # type: ignore[attr-defined]
        kind = health_pb2.HealthCheckRequest
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self.Check, kind.FromString, _Statuses.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                watch, kind.FromString, _Statuses.SerializeToString
            ),
        }
        generic = grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)
        server.add_generic_rpc_handlers((generic,))

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the method's name
        """The state of one service; NOT_FOUND when it is not known."""
        with self._lock:
            status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return _Statuses()
        return _Statuses(status=status)

    def set(self, service: str, status: int) -> None:
        """Set a service's state; returns at once, watchers are told on other threads."""
        with self._lock:
            if self._statuses.get(service) == status:
                return
            self._statuses[service] = status
            watchers = list(self._watchers.get(service, ()))
        for watcher in watchers:
            with contextlib.suppress(RuntimeError):  # closed: nobody watches any more
                self._threads.submit(self._tell, service, watcher)

    def close(self) -> None:
        """Tell nobody any more. Idempotent; servers should be stopped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _watch(self, request: Any, context: Any, send: Send) -> None:
        service, watcher = request.service, _Watcher(send)

        def on_close() -> None:  # runs on the server's event thread: never waits
            self._forget(service, watcher)
            send(None)

        with self._lock:
            self._watchers.setdefault(service, set()).add(watcher)
        if not context.add_callback(on_close):
            self._forget(service, watcher)
            return
        self._tell(service, watcher)

    def _forget(self, service: str, watcher: _Watcher) -> None:
        with self._lock:
            watcher.closed = True
            watchers = self._watchers.get(service)
            if watchers is not None:
                watchers.discard(watcher)
                if not watchers:
                    del self._watchers[service]

    def _tell(self, service: str, watcher: _Watcher) -> None:
        """Send the state until it is the one that was sent last; one thread at a time does."""
        with self._lock:
            if watcher.is_sending:
                return  # whoever sends looks again
            watcher.is_sending = True
        while True:
            with self._lock:
                status = self._statuses.get(service, _Statuses.SERVICE_UNKNOWN)
                if watcher.closed or watcher.sent == status:
                    watcher.is_sending = False
                    return
                watcher.sent = status
            watcher.send(_Statuses(status=status))
