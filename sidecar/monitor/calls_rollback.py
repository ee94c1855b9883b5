"""The monitor's calls about rolling back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor.service import Method
from sidecar.monitor.view_messages import to_message
from sidecar.monitor.view_rollback import DecisionView, RollbackView
from sidecar.protocol.pb import monitor_pb2 as pb

_DECISIONS, _DECISIONS_MAX = 20, 1000


class RollbackCalls(Protocol):
    """What is called."""

    def models(self) -> tuple[str, ...]:
        """Those that are checked."""
        ...

    def views(self, model: str | None = None) -> list[RollbackView]:
        """Every pair."""
        ...

    def decisions(self, model: str | None, limit: int) -> list[DecisionView]:
        """The newest first."""
        ...

    def freeze(self, model: str, *, frozen: bool, by: str, reason: str) -> None:
        """Begin or end a freeze."""
        ...

    def approve(self, name: str, *, by: str, reason: str) -> DecisionView:
        """Let an action be done."""
        ...

    def undo(self, name: str, *, by: str, reason: str) -> DecisionView:
        """Take a decision back."""
        ...


def methods(side: RollbackCalls) -> dict[str, Method]:
    """Name → method, for ``MonitorServer``."""

    def known(model: str) -> str | None:
        if not model:
            return None
        if model not in side.models():
            there = ", ".join(side.models()) or "none"
            message = f"no model {model!r} is checked; there is {there}"
            raise NotFoundError(message)
        return model

    def pairs(model: str | None) -> Any:
        return pb.RollbackResponse(pairs=[to_message(view) for view in side.views(model)])

    def status(request: Any) -> Any:
        return pairs(known(request.model))

    def history(request: Any) -> Any:
        limit = request.limit or _DECISIONS
        if not 0 < limit <= _DECISIONS_MAX:
            message = f"limit is {request.limit}; it must be between 1 and {_DECISIONS_MAX}, or 0 "
            message += f"for {_DECISIONS}"
            raise InvalidRequestError(message)
        found = side.decisions(known(request.model), limit)
        return pb.ListDecisionsResponse(decisions=[to_message(one) for one in found])

    def freeze(request: Any) -> Any:
        side.freeze(request.model, frozen=request.frozen, by=request.by, reason=request.reason)
        return pairs(request.model or None)

    def of(call: Callable[..., DecisionView]) -> Callable[[Any], Any]:
        return lambda request: to_message(call(request.id, by=request.by, reason=request.reason))

    return {
        "Rollback": Method(pb.RollbackRequest, status),
        "ListDecisions": Method(pb.ListDecisionsRequest, history),
        "Freeze": Method(pb.FreezeRequest, freeze, changes=True),
        "Approve": Method(pb.DecisionRequest, of(side.approve), changes=True),
        "Undo": Method(pb.DecisionRequest, of(side.undo), changes=True),
    }
