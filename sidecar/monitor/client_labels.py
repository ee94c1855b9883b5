"""The client's part for labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from sidecar.monitor.label_intake import Label, LabelCounts
from sidecar.monitor.service import SERVICE
from sidecar.protocol.pb import monitor_pb2 as pb


class LabelCalls:
    """A part of ``MonitorClient``, which gives it a connection."""

    _channel: Any

    def _failed(self, error: Any, timeout_s: float | None = None) -> Exception:
        raise NotImplementedError

    def put_labels(
        self, model: str, labels: Sequence[Label], *, token: str = "", timeout_s: float
    ) -> LabelCounts:
        """Tell what the right answers were; returns what became of each.

        Args:
            model: all of the labels' model.
            token: the admin token, where the monitor asks for one.

        Raises:
            MonitorCallError: no answer, no such model, it takes no labels, another token.
        """
        request = pb.PutLabelsRequest(model=model)
        for label in labels:
            message = request.labels.add(request_id=label.request_id)
            for value in label.values:
                if isinstance(value, str):
                    message.values.add(name=value)
                elif isinstance(value, int):
                    message.values.add(index=value)
                else:
                    message.values.add(score=value)
        call = self._channel.unary_unary(
            f"/{SERVICE}/PutLabels",
            request_serializer=pb.PutLabelsRequest.SerializeToString,
            response_deserializer=pb.PutLabelsResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        try:
            answer = call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise self._failed(error, timeout_s) from None
        return LabelCounts(answer.matched, answer.early, answer.repeated, dict(answer.refused))
