"""The client's part for routes."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.errors import SidecarError
from sidecar.monitor.client_calls import Calls
from sidecar.monitor.routing import RouteView
from sidecar.monitor.view_messages import from_message
from sidecar.monitor.view_rollback import CompareView, RollbackView
from sidecar.protocol.pb import monitor_pb2 as pb


class RouteCalls(Calls):
    """A part of ``MonitorClient``."""

    def routes(self, model: str = "") -> list[RouteView]:
        """Ask how one model, or (empty) all are routed.

        Raises:
            MonitorCallError: no answer, or no such model.
        """
        request = pb.ListRoutesRequest(model=model)
        answer = self._ask("ListRoutes", request, pb.ListRoutesResponse)
        return [from_message(one, RouteView) for one in answer.routes]

    def set_route(
        self,
        model: str,
        shares: Mapping[str, float],
        *,
        reason: str = "",
        expected: int | None = None,
        token: str = "",
    ) -> RouteView:
        """Change a route; it is durable when this returns.

        Args:
            shares: version → weight; versions not named get nothing.
            expected: refused (ABORTED) where it is at another revision by now.
            token: the admin token, where the monitor asks for one.

        Raises:
            MonitorCallError: no answer, it was refused, or the token is another one.
        """
        request = pb.SetRouteRequest(
            model=model, shares=shares, reason=reason, expected_revision=expected
        )
        return from_message(self._ask("SetRoute", request, pb.Route, token), RouteView)

    def compare(
        self, model: str, first: str = "", second: str = "", alpha: float = 0.0
    ) -> CompareView:
        """Ask how two versions that share the traffic compare; empty: the two that have shares.

        Raises:
            MonitorCallError: no answer, or no such model or versions.
        """
        request = pb.CompareRequest(model=model, first=first, second=second, alpha=alpha)
        return from_message(self._ask("Compare", request, pb.Comparison), CompareView)

    def judged(self, model: str) -> list[RollbackView] | None:
        """What checks say of a model's pairs of versions; ``None``: this monitor has none.

        Raises:
            MonitorCallError: no answer.
        """
        try:
            request = pb.RollbackRequest(model=model)
            answer = self._ask("Rollback", request, pb.RollbackResponse)
        except SidecarError as error:
            if getattr(error, "code", "") in {"UNIMPLEMENTED", "NOT_FOUND"}:
                return None
            raise
        return [from_message(one, RollbackView) for one in answer.pairs]
