"""Requests and responses as the request's path sees them: no protobuf, no HTTP.

Transports (``servicer.py``, ``http.py``) build an ``InferRequest`` without looking at the model;
the path checks it against the model's signature, executes, and gives an ``InferResponse``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.runtimes.base import Array

if TYPE_CHECKING:
    from sidecar.gateway.sample import Sample
    from sidecar.gateway.tracing import RequestTrace

ParameterValue = bool | int | float | str


@dataclass(slots=True)
class RegionRef:
    """Where in a registered shared-memory region a tensor lies (bytes)."""

    region: str
    byte_size: int
    offset: int = 0


@dataclass(slots=True)
class InputTensor:
    """One input as sent. Exactly one of ``raw``, ``array``, ``region`` is set.

    Attributes:
        name, datatype, shape: as the request says them; not yet checked.
        raw: little-endian bytes (BYTES: each element behind a 4-byte length).
        array: typed contents already converted to the *declared* datatype, flat or shaped; for
            BYTES an object array of ``bytes``. Its size is not yet checked against ``shape``.
        region: the tensor lies in shared memory.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | memoryview | None = None
    array: Array | None = None
    region: RegionRef | None = None


@dataclass(slots=True)
class OutputRequest:
    """One output asked for.

    Attributes:
        region: write it into shared memory instead of the response.
        classification: answer the top-N classes as BYTES ``"score:index"`` instead; 0: off.
        binary: HTTP only: send as binary (``None``: the request's default).
    """

    name: str
    region: RegionRef | None = None
    classification: int = 0
    binary: bool | None = None


@dataclass(slots=True)
class InferRequest:
    """One inference request.

    Attributes:
        model_name, model_version: as asked; ``""`` for the default version.
        id: the body's id, echoed untouched.
        request_id: our own identity: the client's ``x-request-id``, or one that we made.
        parameters: the request's parameters without those the transport consumed.
        outputs: empty means all.
        nbytes: size of the body, for admission and statistics.
        deadline_ns: on the monotonic clock; ``None``: no deadline.
        traceparent: the W3C header as received, or ``""``.
        received_ns: monotonic, when the body was complete; 0: not known.
        started_ns: monotonic, when a thread took it up.
        parse_ns: what the transport spent on reading the body; part of the decode stage.
        transport: how it came: ``grpc``, ``stream`` (gRPC as well) or ``http``.
        sample: set when this request is mirrored to the monitor.
        trace: whose trace it belongs to, and whether it is recorded; ``None``: tracing is off.
        point: where it lies in [0, 1) among the versions that share the traffic; ``None``:
            anywhere, it is drawn when that is needed.
    """

    model_name: str
    model_version: str
    id: str
    request_id: str
    inputs: list[InputTensor]
    outputs: list[OutputRequest] = field(default_factory=list)
    parameters: dict[str, ParameterValue] = field(default_factory=dict)
    nbytes: int = 0
    deadline_ns: int | None = None
    traceparent: str = ""
    received_ns: int = 0
    started_ns: int = 0
    parse_ns: int = 0
    transport: str = "grpc"
    sample: Sample | None = None
    trace: RequestTrace | None = None
    point: float | None = None


@dataclass(slots=True)
class OutputTensor:
    """One output. ``array`` is ``None`` when it was written to shared memory (``region``)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    array: Array | None
    region: RegionRef | None = None


@dataclass(slots=True)
class InferResponse:
    """One answer. ``parameters`` says, among others, when a fallback answered."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]
    parameters: dict[str, ParameterValue] = field(default_factory=dict)
