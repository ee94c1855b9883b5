"""Ports for servers that must be told one, or must come back on the same."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000


def free_ports(count: int) -> list[int]:
    """All different, and below those that the system hands out for port 0 and for connections: a
    port of those may be somebody's before the server that it was meant for takes it.
    """
    end = int(_RANGE.read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as stack:  # all held until all are chosen
        for port in random.SystemRandom().sample(range(_FIRST, end), end - _FIRST):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    message = f"no {count} ports are free from {_FIRST} to {end}"
    raise AssertionError(message)


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def free_addresses(count: int) -> list[str]:
    """The same, with the host."""
    return [f"127.0.0.1:{port}" for port in free_ports(count)]
