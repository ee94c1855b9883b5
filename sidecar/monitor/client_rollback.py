"""The client's part for rolling back."""

from __future__ import annotations

from sidecar.monitor.client_calls import Calls
from sidecar.monitor.view_messages import from_message
from sidecar.monitor.view_rollback import DecisionView, RollbackView
from sidecar.protocol.pb import monitor_pb2 as pb


class RollbackCalls(Calls):
    """A part of ``MonitorClient``.

    Every method raises ``MonitorCallError``: no answer, no such model or decision, another token.
    """

    def rollback(self, model: str = "") -> list[RollbackView]:
        """How each new version of a model, or (empty) of all, stands beside its previous one."""
        answer = self._ask("Rollback", pb.RollbackRequest(model=model), pb.RollbackResponse)
        return [from_message(one, RollbackView) for one in answer.pairs]

    def decisions(self, model: str = "", limit: int = 0) -> list[DecisionView]:
        """What was decided, the newest first; ``limit`` 0: the latest twenty."""
        request = pb.ListDecisionsRequest(model=model, limit=limit)
        answer = self._ask("ListDecisions", request, pb.ListDecisionsResponse)
        return [from_message(one, DecisionView) for one in answer.decisions]

    def freeze(
        self, model: str = "", *, frozen: bool, by: str, reason: str = "", token: str = ""
    ) -> list[RollbackView]:
        """Let nobody but an operator act on a model, or (empty) on any; or end that."""
        request = pb.FreezeRequest(model=model, frozen=frozen, by=by, reason=reason)
        answer = self._ask("Freeze", request, pb.RollbackResponse, token)
        return [from_message(one, RollbackView) for one in answer.pairs]

    def approve(self, name: str, *, by: str, reason: str = "", token: str = "") -> DecisionView:
        """Let an action that waits, or was blocked, be done."""
        request = pb.DecisionRequest(id=name, by=by, reason=reason)
        return from_message(self._ask("Approve", request, pb.Decision, token), DecisionView)

    def undo(self, name: str, *, by: str, reason: str = "", token: str = "") -> DecisionView:
        """Take a rollback back, or close a decision."""
        request = pb.DecisionRequest(id=name, by=by, reason=reason)
        return from_message(self._ask("Undo", request, pb.Decision, token), DecisionView)
