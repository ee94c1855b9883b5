"""Listening for HTTP: uvicorn's server on a socket that was bound before (``listening.py``)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from typing_extensions import override

#: How long, at the end, a connection may take to send its first request.
_SETTLE_S = 1.0


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn closes at once what has sent no request yet. Of connections accepted a moment ago
        # that request is on its way, and would be lost: so accept no more, and give them a moment.
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_S
        while loop.time() < deadline and any(  # noqa: ASYNC110 - uvicorn tells nobody
            getattr(connection, "cycle", None) is None
            for connection in self.server_state.connections
        ):
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
