"""The client's part for rolling back."""

from __future__ import annotations

from typing import Any

import grpc

from sidecar.monitor.service import SERVICE
from sidecar.monitor.view_messages import from_message
from sidecar.monitor.view_rollback import DecisionView, RollbackView
from sidecar.protocol.pb import monitor_pb2 as pb


class RollbackCalls:
    """A part of ``MonitorClient``, which gives it a connection.

    Every method raises ``MonitorCallError``: no answer, no such model or decision, another token.
    """

    _channel: Any
    _timeout_s: float

    def _failed(self, error: Any, timeout_s: float | None = None) -> Exception:
        raise NotImplementedError

    def rollback(self, model: str = "") -> list[RollbackView]:
        """How each new version of a model, or (empty) of all, stands beside its previous one."""
        answer = self._asked("Rollback", pb.RollbackRequest(model=model), pb.RollbackResponse)
        return [from_message(one, RollbackView) for one in answer.pairs]

    def decisions(self, model: str = "", limit: int = 0) -> list[DecisionView]:
        """What was decided, the newest first; ``limit`` 0: the latest twenty."""
        request = pb.ListDecisionsRequest(model=model, limit=limit)
        answer = self._asked("ListDecisions", request, pb.ListDecisionsResponse)
        return [from_message(one, DecisionView) for one in answer.decisions]

    def freeze(
        self, model: str = "", *, frozen: bool, by: str, reason: str = "", token: str = ""
    ) -> list[RollbackView]:
        """Let nobody but an operator act on a model, or (empty) on any; or end that."""
        request = pb.FreezeRequest(model=model, frozen=frozen, by=by, reason=reason)
        answer = self._asked("Freeze", request, pb.RollbackResponse, token)
        return [from_message(one, RollbackView) for one in answer.pairs]

    def approve(self, name: str, *, by: str, reason: str = "", token: str = "") -> DecisionView:
        """Let an action that waits, or was blocked, be done."""
        request = pb.DecisionRequest(id=name, by=by, reason=reason)
        return from_message(self._asked("Approve", request, pb.Decision, token), DecisionView)

    def undo(self, name: str, *, by: str, reason: str = "", token: str = "") -> DecisionView:
        """Take a rollback back, or close a decision."""
        request = pb.DecisionRequest(id=name, by=by, reason=reason)
        return from_message(self._asked("Undo", request, pb.Decision, token), DecisionView)

    def _asked(self, method: str, request: Any, kind: Any, token: str = "") -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=kind.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        try:
            return call(request, timeout=self._timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise self._failed(error) from None
