"""Everything about routes in one monitor: the table, what workers say, and versions compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.clock import Clock
from sidecar.config import SidecarConfig
from sidecar.monitor import calls_route, places
from sidecar.monitor.compare_versions import Comparer
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.route_side import RouteSide
from sidecar.monitor.service import Method
from sidecar.monitor.worker_routes import WorkerRoutes


class RoutingSide:
    """Puts the parts together.

    Attributes:
        routes: implements ``Routes``, for whoever changes them.
        workers: for the channel, which feeds it.
    """

    def __init__(
        self, config: SidecarConfig, base_dir: Path, evidence: Evidence, clock: Clock
    ) -> None:
        self.workers = WorkerRoutes()
        path = places.routes_path(config, base_dir)
        self.routes = RouteSide(config, path, self.workers, clock, self._since)
        self._comparer = Comparer(config, self.workers, self.routes.began, evidence.rows)

    def _since(self, model: str) -> dict[str, Any]:
        return self._comparer.since(model)

    def methods(self) -> Mapping[str, Method]:
        """What the monitor's service answers of it."""
        return calls_route.methods(self.routes, self._comparer.compare)
