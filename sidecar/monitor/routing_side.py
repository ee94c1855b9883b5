"""Everything about routes in one monitor: the table, what workers say, and versions compared."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sidecar import route_table
from sidecar.clock import Clock
from sidecar.config import SidecarConfig
from sidecar.monitor import calls_route, places
from sidecar.monitor.compare_versions import Comparer, Counted
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.fleet_side import FleetSide
from sidecar.monitor.route_fleet import RouteFleet
from sidecar.monitor.route_replicas import RouteReplicas
from sidecar.monitor.route_side import RouteSide
from sidecar.monitor.service import Method
from sidecar.monitor.store import Store
from sidecar.monitor.worker_routes import WorkerRoutes

#: Under which a heartbeat tells of them.
_TOLD = "routes"


class RoutingSide:
    """Puts the parts together.

    Attributes:
        routes: implements ``Routes``, for whoever changes them.
        workers: for the channel, which feeds it.
    """

    def __init__(
        self, config: SidecarConfig, base_dir: Path, evidence: Evidence, clock: Clock,
        shared: Callable[[], Store | None] = lambda: None,
    ) -> None:  # fmt: skip
        """``shared``: the replicas' store, while it can be reached."""
        self.workers = WorkerRoutes()
        path = places.routes_path(config, base_dir)
        self.routes = RouteSide(config, path, self.workers, clock, self._since)
        counted: Counted = self.workers
        self._fleet: RouteFleet | None = None
        self._replicas: RouteReplicas | None = None
        if (settings := config.monitor.store) is not None:
            several = {m.name: len(route_table.answering(m)) > 1 for m in config.models}
            self._replicas = counted = RouteReplicas(
                socket.gethostname(), several, self.workers, self.routes.own, clock,
                settings.sync_s,
            )  # fmt: skip
            self._fleet = RouteFleet(path, tuple(several), shared, clock, settings.sync_s)
            self.routes.share(self._fleet, self._replicas, settings.sync_s)
        self._comparer = Comparer(config, counted, self.routes.began, evidence.rows)

    def _since(self, model: str) -> dict[str, Any]:
        return self._comparer.since(model)

    def join(self, fleet: FleetSide) -> None:
        """Follow the routes of all replicas, tell them of this one's workers, and hear of theirs;
        before ``fleet`` is started."""
        routes, replicas = self._fleet, self._replicas
        if routes is None or replicas is None:
            return

        def step(store: Store) -> None:
            replicas.hear({one.incarnation: one.plain.get(_TOLD) for one in fleet.others()})
            routes.sync(store)

        fleet.replicas.tell(_TOLD, replicas.tell)
        fleet.every_sync("routes", step)

    def methods(self) -> Mapping[str, Method]:
        """What the monitor's service answers of it."""
        return calls_route.methods(self.routes, self._comparer.compare)
