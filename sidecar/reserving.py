"""The ports that several workers share: bound by the supervisor, never listened on by it.

Reserving says early that a port is taken, and makes port 0 one port for all.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sidecar.config import GatewayConfig


def reserve(gateway: GatewayConfig, source: Path) -> tuple[dict[str, str], list[socket.socket]]:
    """Where to listen, by name, and what holds the ports while it is open (nothing for one worker).

    Args:
        gateway: the settings.
        source: the config's file, for messages.

    Raises:
        ConfigError: a port is taken, or an address is not one of this machine.
    """
    wanted = {
        "grpc": gateway.grpc.address,
        "http": gateway.http.address if gateway.http else None,
        "health": gateway.health,
        "admin": gateway.admin.address,
    }
    addresses = {name: address for name, address in wanted.items() if address is not None}
    held: list[socket.socket] = []
    if gateway.workers == 1:
        return addresses, held
    for name, address in addresses.items():
        if not address.startswith("unix:"):
            try:
                held.append(_reserve_one(address))
            except OSError as error:
                message = f"cannot listen on {address}: {error.strerror}"
                raise ConfigError(str(source), [Problem(f"gateway.{name}", message)]) from None
            addresses[name] = f"{address.rpartition(':')[0]}:{held[-1].getsockname()[1]}"
    return addresses, held


def _reserve_one(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if int(port):  # another program may share a port with us only by mistake
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, int(port)))
    return held
