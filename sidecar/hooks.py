"""What a pod's preStop hooks ask: whether the drain is over, and that it begin.

``GET /drained`` waits until nobody can be waiting for an answer any more, and is answered then; the
model's container and the monitor's wait for it, so that both outlive what is in flight. It changes
nothing, so it is on a port. ``POST /drain`` begins the drain, and waits for its end likewise; it is
taken on the Unix socket alone, which only this user can open (``sidecar drain``).

The hooks of a pod's containers run together, and in no order: whoever asks before the drain has
begun waits for that as well. One thread, the standard library, bounds on everything: the supervisor
has it, too, and is thin.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from sidecar.errors import ConfigError, Problem
from sidecar.listening import address_of, listen_tcp, listen_unix
from sidecar.monitor import channel_socket

if TYPE_CHECKING:
    from sidecar.config import DrainConfig

logger = logging.getLogger("sidecar.hooks")

#: Connections at one time, on each listener; who comes later waits in the kernel.
_CONNECTIONS_MAX = 128
_HEAD_BYTES_MAX = 8192
#: For the head of a request to arrive, and for an answer to be taken.
_IO_S = 5.0
#: What a drain may take over its own time limit, until all is closed.
_CLOSING_S = 10.0

_READING, _WAITING, _CLOSING = "reading", "waiting", "closing"


@dataclass(eq=False)
class _Call:
    """One connection. ``due_s``: monotonic, when its patience is over."""

    sock: socket.socket
    may_begin: bool
    due_s: float
    state: str = _READING
    head: bytearray = field(default_factory=bytearray)


class Hooks:
    """The listener: ``start`` → ``begun`` → ``over`` → ``close``; all but the last return at once.

    Args:
        begin: begins the drain; called in the listener's thread, once, and must not wait.
        drain: how long a drain may take: so long a hook waits for its begin, and for its end.
    """

    def __init__(self, begin: Callable[[], object], drain: DrainConfig) -> None:
        self._begin = begin
        self._patience_s = max(drain.timeout_s, drain.delay_s) + _CLOSING_S
        self._lock = threading.Lock()
        self._begun = False
        self._over = False
        self._closing = False
        self._listeners: dict[socket.socket, bool] = {}
        self._full: set[socket.socket] = set()
        self._calls: set[_Call] = set()
        self._path: Path | None = None
        self._selector: selectors.BaseSelector
        self._wakes: tuple[socket.socket, ...] = ()
        self._thread = threading.Thread(target=self._run, name="hooks", daemon=True)

    def start(self, address: str, path: Path) -> str:
        """Listen on ``address`` (a port or a Unix socket) and on the Unix socket ``path``.

        Returns:
            ``address`` with the real port.

        Raises:
            ConfigError: it cannot be listened on.
            ChannelError: the Unix socket cannot be listened on.
        """
        try:
            unix = address.startswith("unix:")
            plain = listen_unix(address.removeprefix("unix:")) if unix else listen_tcp(address)
        except OSError as error:
            problem = Problem("gateway.hooks", f"cannot listen on {address}: {error.strerror}")
            raise ConfigError("gateway", [problem]) from None
        try:
            own = channel_socket.listen(path, "gateway")
        except BaseException:
            plain.close()
            raise
        self._path = path
        self._selector, self._wakes = selectors.DefaultSelector(), socket.socketpair()
        for listener, may_begin in ((plain, False), (own, True)):
            listener.setblocking(False)
            self._listeners[listener] = may_begin
            self._selector.register(listener, selectors.EVENT_READ)
        self._wakes[0].setblocking(False)
        self._selector.register(self._wakes[0], selectors.EVENT_READ)
        self._thread.start()
        return address_of(plain)

    def begun(self) -> None:
        """The drain has begun, by whatever. Idempotent."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
        self._wake()

    def over(self) -> None:
        """The drain is over: everybody who waits is told, and who asks from now on. Idempotent."""
        with self._lock:
            self._begun = self._over = True
        self._wake()

    def close(self) -> None:
        """Let the answers be taken (for a moment), and close."""
        self._closing = True
        self._wake()
        self._thread.join(2 * _IO_S)
        for end in self._wakes:
            end.close()

    def _wake(self) -> None:
        for end in self._wakes[1:]:
            with contextlib.suppress(OSError):
                end.send(b"w")

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        noticed = False
        while not (self._closing and self._settled()):
            for key, _ in self._selector.select(self._pause_s()):
                self._on_event(key)
            with self._lock:
                begun, over = self._begun, self._over
            now_s = monotonic()
            for call in [each for each in self._calls if each.state == _WAITING]:
                if over:
                    self._answer(call, "200 OK", "drained")
                elif begun and not noticed:  # from now on it takes no longer than a drain
                    call.due_s = now_s + self._patience_s
            noticed = noticed or begun
            for call in [each for each in self._calls if each.due_s <= now_s]:
                self._expire(call)
            self._accept_again()
        for call in list(self._calls):
            self._drop(call)
        for listener in self._listeners:
            listener.close()
        self._selector.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _settled(self) -> bool:
        """Nothing is to be waited for at the end: each call has its answer, and has taken it."""
        for call in [each for each in self._calls if each.state != _CLOSING]:
            if call.state == _WAITING:
                self._answer(call, "503 Service Unavailable", "it ends, and was not drained")
            else:
                self._drop(call)
        return not self._calls

    def _pause_s(self) -> float | None:
        due = min((call.due_s for call in self._calls), default=None)
        return None if due is None else max(0.0, due - monotonic())

    def _on_event(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._wakes[0]:
            with contextlib.suppress(OSError):
                self._wakes[0].recv(4096)
        elif isinstance(key.data, _Call):
            self._on_readable(key.data)
        elif isinstance(key.fileobj, socket.socket):
            self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        may_begin = self._listeners[listener]
        try:
            sock, _ = listener.accept()
        except OSError:  # gone meanwhile, or no descriptor is left: it is tried again
            return
        sock.setblocking(False)
        call = _Call(sock, may_begin, monotonic() + _IO_S)
        self._calls.add(call)
        self._selector.register(sock, selectors.EVENT_READ, call)
        if sum(each.may_begin == may_begin for each in self._calls) >= _CONNECTIONS_MAX:
            self._selector.unregister(listener)
            self._full.add(listener)

    def _accept_again(self) -> None:
        for listener in list(self._full):
            may_begin = self._listeners[listener]
            if sum(each.may_begin == may_begin for each in self._calls) < _CONNECTIONS_MAX:
                self._full.discard(listener)
                self._selector.register(listener, selectors.EVENT_READ)

    def _on_readable(self, call: _Call) -> None:
        try:
            data = call.sock.recv(_HEAD_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(call)
        elif call.state == _READING:
            call.head += data
            if b"\r\n\r\n" in call.head:
                self._on_request(call)
            elif len(call.head) > _HEAD_BYTES_MAX:
                self._answer(call, "431 Request Header Fields Too Large", "the head is too long")

    def _on_request(self, call: _Call) -> None:
        method, _, rest = bytes(call.head).partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        match method, path:
            case "GET", "/drained":
                self._wait(call)
            case "POST", "/drain" if call.may_begin:
                with self._lock:
                    first, self._begun = not self._begun, True
                self._wait(call)
                if first:
                    logger.info("a hook begins the drain")
                    self._begin()
            case "POST", "/drain":
                text = "a drain is begun over the Unix socket (sidecar drain)"
                self._answer(call, "403 Forbidden", text)
            case _, "/drained" | "/drain":
                self._answer(call, "405 Method Not Allowed", "GET /drained, POST /drain")
            case _:
                self._answer(call, "404 Not Found", "GET /drained, POST /drain")

    def _wait(self, call: _Call) -> None:
        call.state = _WAITING
        call.due_s = monotonic() + self._patience_s

    def _answer(self, call: _Call, status: str, text: str) -> None:
        body = f"{text}\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        try:  # so little always fits into an empty buffer
            call.sock.send(f"{head}Connection: close\r\n\r\n{body}".encode())
            call.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(call)
            return
        # Closed when the caller has: what it still sends would make a close a reset, which can
        # overtake the answer.
        call.state, call.due_s = _CLOSING, monotonic() + _IO_S

    def _expire(self, call: _Call) -> None:
        if call.state == _WAITING:
            self._answer(call, "503 Service Unavailable", "it was not drained in time")
        else:
            self._drop(call)

    def _drop(self, call: _Call) -> None:
        self._calls.discard(call)
        self._selector.unregister(call.sock)
        call.sock.close()
