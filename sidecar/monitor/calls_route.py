"""The monitor's calls about routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sidecar.monitor.routing import Routes
from sidecar.monitor.service import Method
from sidecar.monitor.view_messages import to_message
from sidecar.monitor.view_rollback import CompareView
from sidecar.protocol.pb import monitor_pb2 as pb

#: Model, first and second version (empty: the two that share the traffic), risk (0: the default).
Compare = Callable[[str, str, str, float], CompareView]


def methods(routes: Routes, compare: Compare) -> dict[str, Method]:
    """Name → method, for ``MonitorServer``."""

    def list_routes(request: Any) -> Any:
        found = [routes.route(request.model)] if request.model else routes.routes()
        return pb.ListRoutesResponse(routes=[to_message(one) for one in found])

    def set_route(request: Any) -> Any:
        expected = request.expected_revision if request.HasField("expected_revision") else None
        view = routes.set(
            request.model, dict(request.shares), by="operator", reason=request.reason,
            expected=expected,
        )  # fmt: skip
        return to_message(view)

    def compare_versions(request: Any) -> Any:
        return to_message(compare(request.model, request.first, request.second, request.alpha))

    return {
        "ListRoutes": Method(pb.ListRoutesRequest, list_routes),
        "SetRoute": Method(pb.SetRouteRequest, set_route, changes=True),
        "Compare": Method(pb.CompareRequest, compare_versions),
    }
