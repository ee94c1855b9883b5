"""The monitor's plaintext health listener, for a pod's probes (kubelet speaks no TLS).

``live`` is SERVING from the first moment: no probe of start-up or liveness waits for copies to be
loaded. The service without a name is SERVING once the monitor watches.
"""

from __future__ import annotations

from concurrent import futures

import grpc
from grpc_health.v1 import health_pb2

from sidecar.config import SidecarConfig
from sidecar.errors import ConfigError, Problem
from sidecar.health import HealthServicer

_Statuses = health_pb2.HealthCheckResponse


class Health:
    """Listens from when it is made, until the process ends; without an address it is nothing.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(self, address: str | None) -> None:
        self._state = HealthServicer()
        self._state.set("", _Statuses.NOT_SERVING)
        self._bound: dict[str, str] = {}
        if address is None:
            return
        self._server = grpc.server(
            futures.ThreadPoolExecutor(2, "health"), options=[("grpc.so_reuseport", 0)]
        )
        self._state.add_to_server(self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            text = f"cannot listen on {address}: it is in use, or not an address of this machine"
            raise ConfigError("monitor", [Problem("monitor.health", text)]) from None
        unix = address.startswith("unix:")
        self._bound = {"health": address if unix else f"{address.rpartition(':')[0]}:{port}"}
        self._server.start()

    def watches(self) -> dict[str, str]:
        """The monitor watches from now on; returns the address, by ``health``, if it listens."""
        self._state.set("", _Statuses.SERVING)
        return self._bound


def probed(config: SidecarConfig) -> Health:
    """As ``monitor.health`` says."""
    return Health(config.monitor.health)
