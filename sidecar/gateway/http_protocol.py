"""Bounds that uvicorn's connections lack: a request's head in bytes and time, and how many.

httptools keeps a header of any size, and neither parser ends a connection that opens and says
nothing, or sends its head one byte a minute. uvicorn takes a protocol class for exactly such needs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What no client has a reason to exceed: constants of the server rather than settings.

    Attributes:
        head_bytes: URL and headers together.
        head_timeout_s: for a head to arrive, and for a refused body to be read to its end.
        body_stall_s: how long a client may send no byte of a body it has announced.
        keep_alive_s: how long an idle connection stays open: longer than the idle time of common
            load balancers (60 s), so that it is they who close, and no request meets a connection
            that is just closing.
        connections: of one process; further ones are closed at once.
    """

    head_bytes: int = 64 * 1024
    head_timeout_s: float = 30.0
    body_stall_s: float = 60.0
    keep_alive_s: int = 75
    connections: int = 4096


class _Guard:
    """Mixed into one of uvicorn's protocol classes, in front of it."""

    limits = HttpLimits()

    # What uvicorn's two classes have in common, so far as it is used here.
    transport: Any
    connections: Any
    cycle: Any
    loop: asyncio.AbstractEventLoop

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def _reading_body(self) -> bool:
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        if len(self.connections) > self.limits.connections:
            self.transport.abort()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        in_body = self._reading_body()  # before: these bytes may be the body's last
        super().data_received(data)  # type: ignore[misc]
        if self.transport.is_closing():
            self._disarm()
        elif self.cycle is not None and not self.cycle.response_complete:
            # A request is being worked on: its own limits (body, deadline) hold.
            self._disarm()
            self._head_bytes = 0
        else:
            # The next request's head, or what is left of a body that was answered early.
            self._arm()
            if not (in_body or self._reading_body()):
                self._head_bytes += len(data)
                if self._head_bytes > self.limits.head_bytes:
                    self.send_400_response("The request's head is too large.")  # type: ignore[attr-defined]

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.limits.head_timeout_s, self.transport.abort
            )

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class GuardedH11(_Guard, H11Protocol):
    """uvicorn over h11 (pure Python: the base install)."""

    @override
    def _reading_body(self) -> bool:
        # h11 bounds the head itself (64 KiB): nothing to count.
        return True


def protocol_class(parser: str, limits: HttpLimits) -> type[asyncio.Protocol]:
    """Return the class for uvicorn's ``http``, bounded by ``limits``.

    Args:
        parser: ``"h11"``, or ``"auto"``: httptools (C) where it is installed, else h11.
        limits: uvicorn makes the instances, so they travel as an attribute of a class of their own.
    """
    base = GuardedH11 if parser == "h11" else _fastest()
    return type(base.__name__, (base,), {"limits": limits})


def _fastest() -> type[asyncio.Protocol]:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return GuardedH11

    class GuardedHttpTools(_Guard, HttpToolsProtocol):
        _in_body = False

        @override
        def on_headers_complete(self) -> None:
            self._in_body = True
            self._head_bytes = 0
            super().on_headers_complete()

        @override
        def on_message_complete(self) -> None:
            self._in_body = False
            super().on_message_complete()

        @override
        def _reading_body(self) -> bool:
            return self._in_body

    return GuardedHttpTools
