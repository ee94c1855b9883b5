"""The monitor's call for late labels."""

from __future__ import annotations

from typing import Any

from sidecar.errors import InvalidRequestError
from sidecar.monitor.label_intake import Label, LabelCounts, LabelSink
from sidecar.monitor.service import Method
from sidecar.protocol.pb import monitor_pb2 as pb


def methods(sink: LabelSink) -> dict[str, Method]:
    """Name → method, for ``MonitorServer``."""

    def put_labels(request: Any) -> Any:
        sink.check(request.model)
        return _response(sink.put([_label(request.model, one) for one in request.labels]))

    # Evidence is made of them.
    return {"PutLabels": Method(pb.PutLabelsRequest, put_labels, changes=True)}


def _label(model: str, message: Any) -> Label:
    values = []
    for value in message.values:
        kind = value.WhichOneof("value")
        if kind is None:
            where = f"the label of request {message.request_id!r}"
            raise InvalidRequestError(f"{where} has a value that is no index, name or score")
        values.append(getattr(value, kind))
    return Label(model, message.request_id, tuple(values))


def _response(counts: LabelCounts) -> Any:
    return pb.PutLabelsResponse(
        matched=counts.matched, early=counts.early, repeated=counts.repeated,
        refused=counts.refused or {},
    )  # fmt: skip
