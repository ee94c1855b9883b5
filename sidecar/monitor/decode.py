"""From an exchange's wire bytes to arrays, by the very code that the gateway uses.

Requests may ask for a part of the outputs: then only those are there. What cannot be compared with
another variant's answer raises ``NotComparableError`` with a reason to be counted by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidecar.errors import InvalidRequestError, RequestError, UpstreamError
from sidecar.gateway.messages import InferRequest, InputTensor
from sidecar.monitor.exchange import Bytes, Exchange
from sidecar.protocol import codec
from sidecar.protocol.arrays import materialize
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.fields import MalformedError, spans
from sidecar.protocol.json_codec import Envelope, decode_request
from sidecar.protocol.json_data import array_from_json, brief, parse_json
from sidecar.runtimes.base import Array, Signature, TensorSpec
from sidecar.runtimes.remote_tensors import decode_answer

#: Field 2 of ModelStreamInferResponse, an embedded message.
_ANSWER = 2


class NotComparableError(RequestError):
    """A good answer that says too little to compare it; ``reason`` is what it is counted by.

    Reasons: ``classification`` (labels instead of an output), ``shared_memory`` (the data is not in
    the exchange), ``failed`` (there is no answer).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse(exchange: Exchange) -> InferRequest:
    """The request as a transport has read it; for callers that decode inputs and outputs.

    Raises:
        InvalidRequestError: it is not what its transport says.
    """
    body = _as_bytes(exchange.request)
    if exchange.transport != "http":
        return codec.parse_request(body, exchange.request_id)
    envelope = Envelope(exchange.model, "", exchange.request_id, exchange.request_header_bytes)
    return decode_request(body, envelope)[0]


def decode_inputs(
    exchange: Exchange, signature: Signature, *, parsed: InferRequest | None = None
) -> dict[str, Array]:
    """The request's inputs, checked against a variant's signature.

    Args:
        exchange: of any transport.
        signature: of the variant that they are for; its batch limit holds too.
        parsed: what ``parse`` gave, to save parsing again (it is not to be used for another
            signature afterwards: a raw HTTP body takes its shape from this one).

    Returns:
        Name → array of the declared shape and dtype, in the order of the request; numeric ones are
        read-only views of the exchange's bytes, BYTES are ``bytes``.

    Raises:
        NotComparableError: an input lies in shared memory.
        RequestError: the request does not fit the signature; says where.
    """
    request = parse(exchange) if parsed is None else parsed
    if any(tensor.region is not None for tensor in request.inputs):
        raise NotComparableError("shared_memory", "an input lies in shared memory")
    return materialize(request, {s.name: s for s in signature.inputs}, signature.max_batch_size)


def decode_outputs(
    exchange: Exchange, signature: Signature, *, parsed: InferRequest | None = None
) -> dict[str, Array]:
    """The answer's outputs: those that the request asked for, or all.

    Args:
        exchange: of any transport.
        signature: of the variant that answered.
        parsed: what ``parse`` gave, to save parsing again.

    Returns:
        Name → array of the declared dtype, in the order asked for, or of the signature.

    Raises:
        NotComparableError: there is no answer, or one of labels, or in shared memory.
        RequestError: the answer does not fit the signature; says where.
    """
    if exchange.response is None:
        text = f"the request failed ({exchange.outcome}), so that there is no answer"
        raise NotComparableError("failed", text)
    request = parse(exchange) if parsed is None else parsed
    for output in request.outputs:
        if output.region is not None:
            text = f"output '{output.name}' lies in shared memory"
            raise NotComparableError("shared_memory", text)
        if output.classification:
            text = f"output '{output.name}' was asked for as labels"
            raise NotComparableError("classification", text)
    specs = {spec.name: spec for spec in signature.outputs}
    wanted = [output.name for output in request.outputs] or list(specs)
    for name in wanted:
        if name not in specs:
            text = f"the request asks for output '{name}', which the signature does not have"
            raise InvalidRequestError(text)
    body = _as_bytes(exchange.response)
    try:
        if exchange.transport == "http":
            return _from_http(body, exchange.response_header_bytes, specs, wanted)
        if exchange.transport == "stream":
            body = within_element(body)
        return dict(zip(wanted, decode_answer(body, specs, wanted), strict=True))
    except UpstreamError as error:
        # Its text speaks of a server behind this one.
        raise _malformed(str(error).rpartition("malformed: ")[2]) from None


def _as_bytes(body: Bytes) -> bytes:
    return body if isinstance(body, bytes) else bytes(body)


def _malformed(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"the answer is malformed: {what}")


def within_element(body: bytes) -> bytes:
    """The ``ModelInferResponse`` within a ``ModelStreamInferResponse``.

    Protobuf merges a message that occurs twice, which is what joining their bytes does.
    """
    try:
        found = spans(body)
    except MalformedError as error:
        raise _malformed(str(error)) from None
    return b"".join(body[start:end] for number, _, start, end in found if number == _ANSWER)


def _from_http(
    body: bytes, json_bytes: int | None, specs: Mapping[str, TensorSpec], wanted: Sequence[str]
) -> dict[str, Array]:
    view = memoryview(body)
    split = len(body) if json_bytes is None else json_bytes
    document = parse_json(view[:split], "the answer's JSON")
    items = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _malformed("it has no list of outputs")
    found: dict[str, Array] = {}
    for item in items:
        name = item.get("name")
        parameters = item.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        raw = None
        if type(size) is int and 0 <= size <= len(body) - split:
            raw = view[split : split + size]
            split += size
        elif size is not None:
            raise _malformed(f"output {brief(name)} has binary_data_size {brief(size)}")
        if name in wanted:
            found[name] = _tensor(item, raw, specs[name])
    missing = [name for name in wanted if name not in found]
    if missing:
        raise _malformed(f"it has no output '{missing[0]}'")
    return {name: found[name] for name in wanted}


def _tensor(item: Mapping[str, Any], raw: memoryview | None, spec: TensorSpec) -> Array:
    """One output of an HTTP answer, read by the code that reads inputs."""
    shape, where = item.get("shape"), f"output '{spec.name}'"
    if item.get("datatype") != spec.datatype:
        raise _malformed(f"{where} is {brief(item.get('datatype'))}, not {spec.datatype}")
    if type(shape) is not list or not all(type(n) is int and n >= 0 for n in shape):
        raise _malformed(f"{where} has the shape {brief(shape)}")
    tensor = InputTensor(spec.name, spec.datatype, tuple(shape), raw=raw)
    if raw is None:
        tensor.array = array_from_json(item.get("data"), BY_NAME[spec.datatype], where)
    as_sent = TensorSpec(spec.name, spec.datatype, (-1,) * len(shape))
    only = InferRequest("", "", "", "", [tensor])
    return materialize(only, {spec.name: as_sent}, 0)[spec.name]
