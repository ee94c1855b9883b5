"""Between the plain data of ``view.py`` and the messages of ``proto/monitor.proto``.

Both sides carry the same field names, so one walk over the fields does for all of them; a test
compares the names. ``None`` is a field that is not set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from google.protobuf.message import Message

from sidecar.monitor import routing, rows, telemetry_view, view, view_drift, view_rollback
from sidecar.monitor.deep.view import DeepReport
from sidecar.protocol.pb import monitor_pb2 as pb
from validators.verdict import Verdict

T = TypeVar("T")

#: Plain data → its message.
MESSAGES: Mapping[type[Any], type[Message]] = {
    view.MonitorStatus: pb.MonitorStatus,
    view.ModelStatus: pb.ModelStatus,
    view.PairStatus: pb.PairStatus,
    view.OutputStatus: pb.OutputStatus,
    view.NoiseView: pb.Noise,
    view.CertificateView: pb.Certificate,
    view.Coverage: pb.Coverage,
    view.StoreStatus: pb.StoreStatus,
    view.LeaderStatus: pb.LeaderStatus,
    view.ChildStatus: pb.ChildStatus,
    telemetry_view.TelemetryStatus: pb.Telemetry,
    telemetry_view.SignalStatus: pb.TelemetrySignal,
    view.CaseView: pb.Case,
    view.VerdictEvent: pb.VerdictEvent,
    view_drift.DriftView: pb.DriftModel,
    view_drift.DriftUnit: pb.DriftUnit,
    DeepReport: pb.DeepReport,
    routing.RouteView: pb.Route,
    view_rollback.HarmView: pb.Harm,
    view_rollback.Delivery: pb.Delivery,
    view_rollback.DecisionView: pb.Decision,
    view_rollback.CalibrationView: pb.Calibration,
    view_rollback.RollbackView: pb.RollbackPair,
    view_rollback.CompareSide: pb.CompareSide,
    view_rollback.CompareMetric: pb.CompareMetric,
    view_rollback.CompareView: pb.Comparison,
    rows.EvidenceKey: pb.EvidenceKey,
    rows.EvidenceRow: pb.EvidenceRow,
}


def to_message(value: Any) -> Any:
    """Return the message of a dataclass that ``MESSAGES`` lists."""
    message = MESSAGES[type(value)]()
    for item in fields(value):
        name, content = item.name, getattr(value, item.name)
        if content is None:
            continue
        if isinstance(content, Verdict):
            setattr(message, name, pb.Verdict.Value(f"VERDICT_{content.name}"))
        elif isinstance(content, dict):
            getattr(message, name).update(content)
        elif isinstance(content, list | tuple):
            getattr(message, name).extend(
                to_message(one) if is_dataclass(one) else one for one in content
            )
        elif is_dataclass(content):
            getattr(message, name).CopyFrom(to_message(content))
        else:
            setattr(message, name, content)
    return message


def from_message(message: Any, kind: type[T]) -> T:
    """Return ``kind`` (a dataclass that ``MESSAGES`` lists) with what a message says.

    Fields that a later release added are left out; an unknown verdict reads as INVALID.
    """
    values = {
        name: _read(message, name, hint)
        for name, hint in _hints(kind).items()  # type: ignore[arg-type]  # a class is hashable
        if name in message.DESCRIPTOR.fields_by_name
    }
    return kind(**values)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(message: Any, name: str, hint: Any) -> Any:
    content = getattr(message, name)
    optional = get_origin(hint) is UnionType
    if optional:
        hint = next(one for one in get_args(hint) if one is not NoneType)
    if hint is Verdict:
        return _verdict(content, optional=optional)
    if optional and not message.HasField(name):
        return None
    if hint in MESSAGES:
        return from_message(content, hint)
    origin = get_origin(hint)
    if origin is dict:
        return dict(content)
    if origin in {list, tuple}:
        inner = get_args(hint)[0]
        items = (from_message(one, inner) if inner in MESSAGES else one for one in content)
        return origin(items)
    return content


def _verdict(number: int, *, optional: bool) -> Verdict | None:
    if optional and number == pb.VERDICT_UNSPECIFIED:
        return None
    known = {pb.Verdict.Value(f"VERDICT_{verdict.name}"): verdict for verdict in Verdict}
    return known.get(number, Verdict.INVALID)


def to_json(value: Any) -> Any:
    """Return a dataclass as JSON values; numbers that JSON does not have (infinity) are null."""
    return _finite(asdict(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
