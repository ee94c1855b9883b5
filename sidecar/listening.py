"""Listening sockets for HTTP, of the standard library alone: bound before anything else is made."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

BACKLOG = 2048


def listen_tcp(address: str, *, share_port: bool = False) -> socket.socket:
    """Listen on ``host:port``.

    Raises:
        OSError: it is in use, or not an address of this machine.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    flags = socket.AI_PASSIVE
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=flags)
    family, kind, protocol, _, target = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            # Only where there are several workers: otherwise a second sidecar started by mistake
            # would take half of the first one's traffic instead of failing.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(target)
        # Here, not when uvicorn gets to it: from now on connections wait instead of being refused.
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_unix(path: str) -> socket.socket:
    """Listen on a Unix socket; one that nobody answers at is replaced.

    Raises:
        OSError: it cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and not _answers(path):
            Path(path).unlink()  # left behind by a process that was killed
        listener.bind(path)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.connect(path)
        return True
    return False


def address_of(listener: socket.socket) -> str:
    """``host:port`` with the real port, or ``unix:path``."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    return (
        f"[{name[0]}]:{name[1]}" if listener.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    )
