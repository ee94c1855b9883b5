"""The gRPC listeners of one worker: inference, plaintext health, admin."""

from __future__ import annotations

import logging
import threading
from concurrent import futures
from functools import partial
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from sidecar.errors import ConfigError, Problem
from sidecar.gateway.core import Gateway
from sidecar.gateway.grpc_pool import GrpcPool
from sidecar.gateway.servicer import SERVICE, count_refusal, generic_handler
from sidecar.gateway.tls import grpc_credentials
from sidecar.health import HealthServicer

if TYPE_CHECKING:
    from sidecar.config import GatewayConfig

logger = logging.getLogger(__name__)


class GrpcServers:
    """All gRPC listeners of a worker; one health state for all."""

    def __init__(self, gateway: Gateway, config: GatewayConfig) -> None:
        self._gateway = gateway
        self._config = config
        refusals = partial(count_refusal, gateway)
        self._pool = GrpcPool(gateway.pool, gateway.admission, refusals)
        self._health = HealthServicer()
        self._servers: list[grpc.Server] = []
        self._health_bound: dict[str, str] = {}
        self._stopped = threading.Event()
        self.set_serving(serving=False)

    def start_health(self, addresses: dict[str, str]) -> dict[str, str]:
        """Listen on ``health`` of the addresses, if it is there and was not done before.

        Returns:
            ``health`` with the real port, or nothing.

        Raises:
            ConfigError: it cannot be listened on.
        """
        if "health" in addresses and not self._health_bound:
            server = self._server(futures.ThreadPoolExecutor(2, "health-plain"))
            self._health.add_to_server(server)
            bound = self._listen("gateway.health", addresses["health"], server, tls=False)
            self._health_bound = {"health": bound}
            server.start()
        return self._health_bound

    def start(self, addresses: dict[str, str]) -> dict[str, str]:
        """Listen.

        Args:
            addresses: ``grpc``, and ``admin`` where wanted: ``host:port`` or ``unix:path``; port 0
                takes any free one.

        Returns:
            The same with the real ports.

        Raises:
            ConfigError: an address cannot be listened on, or the TLS files are wrong.
        """
        main = self._main()
        started = [main]
        bound = {"grpc": self._listen("gateway.grpc", addresses["grpc"], main)}
        if "admin" in addresses:
            started.append(server := self._main(trusted=True))
            bound["admin"] = self._listen("gateway.admin", addresses["admin"], server)
        for server in started:
            server.start()
        return bound

    def _server(self, pool: futures.ThreadPoolExecutor) -> grpc.Server:
        config = self._config.grpc
        age_ms = int(config.max_connection_age_s * 1000)
        return grpc.server(
            pool,
            options=[
                # Shared only by several workers: a second sidecar started by mistake must fail
                # instead of taking half the traffic.
                ("grpc.so_reuseport", 1 if self._config.workers > 1 else 0),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Old connections are asked to go, so that clients rebalance, and a drain that is
                # longer than this ends with no connection left that could still send. Streams
                # end in their own time: no grace is set, so theirs is unlimited until shutdown.
                ("grpc.max_connection_age_ms", age_ms),
                # Clients with keepalive pings (any service mesh) are not punished for them.
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )

    def _main(self, *, trusted: bool = False) -> grpc.Server:
        server = self._server(self._pool)
        server.add_generic_rpc_handlers((generic_handler(self._gateway, trusted=trusted),))
        self._health.add_to_server(server)
        if self._config.grpc.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _listen(self, path: str, address: str, server: grpc.Server, *, tls: bool = True) -> str:
        config = self._config.grpc.tls if tls else None
        try:
            if config is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, grpc_credentials(config, path))
        except RuntimeError:
            problem = Problem(
                f"{path}.address",
                f"cannot listen on {address}: it is in use, or not an address of this machine",
            )
            raise ConfigError("gateway", [problem]) from None
        self._servers.append(server)
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{port}"

    def set_serving(self, *, serving: bool) -> None:
        """Set what ``grpc.health.v1`` answers."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for name in ("", SERVICE):
            self._health.set(name, status)

    def stop(self, grace_s: float) -> None:
        """Send GOAWAY, let what is in flight end for so long, and close."""
        events = [server.stop(grace_s) for server in self._servers]
        for event in events:
            event.wait()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._health.close()
