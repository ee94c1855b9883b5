"""The monitor's end of the channel on which gateway workers hand over exchanges, spans and logs.

A Unix stream socket that only this user may connect to. The gateway never waits for it: whatever
goes wrong here costs what was sent, and each is counted there. The frames are those of
``channel_frames.py``.

The worker counts what was not acknowledged when the connection ended as lost, and holds no more
than its bounds unacknowledged: what lies in the kernel meanwhile is bounded too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar import frames
from sidecar.monitor.channel_frames import (
    ACK,
    COUNTERS,
    EXCHANGE,
    HELLO,
    LOGS,
    PROBED,
    RATE,
    ROUTED,
    SPANS,
    unpack_exchange,
    unpack_logs,
    unpack_spans,
)
from sidecar.monitor.channel_socket import is_ours, limit_sends, listen
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.worker_routes import WorkerRoutes
from sidecar.traces import SpanRecord

logger = logging.getLogger(__name__)

#: Connections at once: as many as there may be workers, and some that are being replaced.
_CONNECTIONS_MAX = 512
#: For fields and layout, beside the bytes of an exchange.
_FRAME_EXTRA_BYTES = 2**20
#: A worker that does not take the few bytes of an answer for so long is dropped.
_SEND_TIMEOUT_S = 5.0
#: Under load there is always more to read: then what has come is acknowledged so often.
_ACK_BYTES = 128 * 1024
#: A span or a log record, as it is on the way.
_RECORD_BYTES = 512


class ExchangeListener:
    """Accepts gateway workers and hands over what they send.

    Args:
        path: of the socket; its folder is made when it is not there. A socket file that nobody
            listens on any more is replaced.
        on_exchange: called in the connection's thread for each exchange; while it runs, nothing
            more is read from that worker. What it raises is logged, and the connection goes on.
        max_exchange_bytes: as configured for the gateway; a larger one ends the connection.
        rate: the sampling rate that workers are told when they connect.
        on_spans, on_logs: the same for what was noted of traced requests, and for log records (as
            ``unpack_logs`` gives them), as many as came together; ``None``: nobody wants them.
        routes: hears what workers say of their routes, and of probes.
    """

    def __init__(
        self,
        path: Path,
        on_exchange: Callable[[Exchange], None],
        *,
        max_exchange_bytes: int,
        rate: float,
        on_spans: Callable[[list[SpanRecord]], None] | None = None,
        on_logs: Callable[[list[dict[str, Any]]], None] | None = None,
        routes: WorkerRoutes | None = None,
    ) -> None:
        self.path = path
        self._on_exchange, self._on_spans, self._on_logs = on_exchange, on_spans, on_logs
        self._routes = routes or WorkerRoutes()
        self._max_frame_bytes = max_exchange_bytes + _FRAME_EXTRA_BYTES
        self._rate = rate
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, _Connection] = {}
        self._counters: dict[int, dict[str, int]] = {}
        self._closed = False
        self.received = 0
        self.bytes = 0
        self.spans = self.logs = 0
        self.garbage = 0
        self._socket = listen(path)
        self._inode = os.stat(path).st_ino  # noqa: PTH116 - beside the other calls of os here
        self._thread = threading.Thread(target=self._accept, name="channel", daemon=True)

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening, end all connections, remove the socket file. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = list(self._connections.values())
        for connection in connections:
            connection.end()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:  # not another monitor's by now
                self.path.unlink()
        if self._thread.is_alive():
            self._thread.join(_SEND_TIMEOUT_S)
        for connection in connections:
            connection.join(_SEND_TIMEOUT_S)

    # --- what the monitor reads and says --------------------------------------------------------

    @property
    def rate(self) -> float:
        """The sampling rate last set."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Tell all workers, and those to come, which share of requests to take (0 to 1)."""
        with self._lock:
            if rate == self._rate:
                return
            self._rate = rate
            connections = list(self._connections.values())
        for connection in connections:
            connection.send(RATE, {"rate": rate})

    def workers(self) -> int:
        """How many workers are connected."""
        with self._lock:
            return sum(connection.greeted for connection in self._connections.values())

    def worker_counters(self) -> dict[int, dict[str, int]]:
        """Worker → the gateway's counts of what was sampled, dropped and not mirrored.

        Since ``serve`` began, not since this monitor did; as old as the last frame, at most about
        a second. A worker that was restarted goes on in its predecessor's counts.
        """
        with self._lock:
            return {worker: dict(counters) for worker, counters in self._counters.items()}

    def tap_counters(self) -> dict[str, int]:
        """The same, over all workers."""
        return dict(sum(map(Counter, self.worker_counters().values()), Counter[str]()))

    # --- connections ----------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if self._closed:
                    return
                # No descriptors left, say; the queue of the kernel holds whoever comes.
                logger.warning("cannot accept a gateway worker: %s", error)
                threading.Event().wait(0.5)
                continue
            connection = _Connection(self, sock)
            with self._lock:
                taken = not self._closed and len(self._connections) < _CONNECTIONS_MAX
                if taken:
                    self._connections[sock] = connection
                rate = self._rate
            if taken and is_ours(sock):
                connection.start(rate)
            else:
                self._forget(sock)
                sock.close()

    def _forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.pop(sock, None)

    def _on_garbage(self, error: Exception) -> None:
        with self._lock:
            self.garbage += 1
        logger.warning("what came over %s cannot be read, the connection is closed: %s",
                       self.path, error)  # fmt: skip

    def _take(self, exchange: Exchange) -> None:
        with self._lock:
            self.received += 1
            self.bytes += exchange.nbytes
        try:
            self._on_exchange(exchange)
        except Exception:
            logger.exception("an exchange could not be taken in")

    def _take_spans(self, spans: list[SpanRecord]) -> None:
        with self._lock:
            self.spans += len(spans)
        try:
            if self._on_spans is not None:
                self._on_spans(spans)
        except Exception:
            logger.exception("spans could not be taken in")

    def _take_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._lock:
            self.logs += len(logs)
        try:
            if self._on_logs is not None:
                self._on_logs(logs)
        except Exception:
            logger.exception("log records could not be taken in")

    def _take_counters(self, worker: int, fields: dict[str, Any]) -> None:
        counters = {
            str(name): count for name, count in fields.items() if type(count) is int and count >= 0
        }
        with self._lock:
            self._counters[worker] = counters


class _Connection:
    """One worker: a thread that reads; whoever has something to say sends."""

    def __init__(self, listener: ExchangeListener, sock: socket.socket) -> None:
        self._listener = listener
        self._socket = sock
        self._sending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="exchanges", daemon=True)
        self.greeted = False
        self.worker = self.pid = -1

    def start(self, rate: float) -> None:
        limit_sends(self._socket, _SEND_TIMEOUT_S)
        self.send(RATE, {"rate": rate})
        self._thread.start()

    def send(self, kind: int, fields: dict[str, Any]) -> None:
        """Say something; a worker that is gone, or does not read, is dropped."""
        try:
            with self._sending:
                frames.send(self._socket, kind, fields)
        except OSError:
            self.end()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, timeout_s: float) -> None:
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        receiver = frames.Receiver(self._socket, max_bytes=self._listener._max_frame_bytes)
        try:
            self._read(receiver)
        except ValueError as error:
            if not self._listener._closed:
                self._listener._on_garbage(error)
        finally:
            receiver.close()
            self._listener._forget(self._socket)
            self._listener._routes.left(self)
            with self._sending:
                self._socket.close()

    def _read(self, receiver: frames.Receiver) -> None:
        first = receiver.receive()
        if first is None:
            return
        worker, pid = (first.fields.get(name) for name in ("worker", "pid"))
        if first.kind != HELLO or type(worker) is not int or type(pid) is not int:
            message = "a connection must begin with who it is from"
            raise ValueError(message)
        self.worker, self.pid = worker, pid
        self.greeted = True
        self._listener._routes.joined(self)
        taken = {"exchanges": 0}
        unacknowledged = 0
        while (frame := receiver.receive()) is not None:
            if frame.kind == COUNTERS:
                self._listener._take_counters(worker, frame.fields)
                continue
            if frame.kind in {ROUTED, PROBED}:
                self._listener._routes.heard(self, frame.kind, frame.fields)
                continue
            unacknowledged += self._take(frame, pid, taken)
            # One answer for what came together: an answer each would wake the worker's thread as
            # often as there are exchanges.
            if not receiver.buffered or unacknowledged > _ACK_BYTES:
                self.send(ACK, taken)
                unacknowledged = 0

    def _take(self, frame: frames.Frame, pid: int, taken: dict[str, int]) -> int:
        """Hand on what came, and count it in ``taken``; its size, about, in bytes."""
        if frame.kind == EXCHANGE:
            exchange = unpack_exchange(frame.fields, frame.parts, pid)
            self._listener._take(exchange)
            taken["exchanges"] += 1
            return exchange.nbytes
        if frame.kind == SPANS:
            spans = unpack_spans(frame.fields)
            self._listener._take_spans(spans)
            taken["spans"] = taken.get("spans", 0) + len(spans)
            return len(spans) * _RECORD_BYTES
        if frame.kind == LOGS:
            logs = unpack_logs(frame.fields)
            self._listener._take_logs(logs)
            taken["logs"] = taken.get("logs", 0) + len(logs)
            return len(logs) * _RECORD_BYTES
        message = f"a frame of the unknown kind {frame.kind}"
        raise ValueError(message)
