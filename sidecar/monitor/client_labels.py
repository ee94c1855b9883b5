"""The client's part for labels."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.monitor.client_calls import Calls
from sidecar.monitor.label_intake import Label, LabelCounts
from sidecar.protocol.pb import monitor_pb2 as pb


class LabelCalls(Calls):
    """A part of ``MonitorClient``."""

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
        answer = self._ask("PutLabels", request, pb.PutLabelsResponse, token, timeout_s)
        return LabelCounts(answer.matched, answer.early, answer.repeated, dict(answer.refused))
