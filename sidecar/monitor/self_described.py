"""Reading exchanges of which no copy says what the model takes: by what they say of themselves.

Requests and answers name the datatype and shape of their tensors, so that a model that is watched
for drift alone needs no copy in the monitor. What the signature would add, and is missing here, is
whether the first axis counts rows: that is taken from all tensors having the same.
"""

from __future__ import annotations

import json

from google.protobuf.message import DecodeError

from sidecar.errors import InvalidRequestError
from sidecar.gateway.messages import InferRequest
from sidecar.monitor.decode import NotComparableError, within_element
from sidecar.monitor.exchange import Exchange
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Array, Signature, TensorSpec


def signature_of(exchange: Exchange, parsed: InferRequest) -> Signature:
    """A signature that just fits one exchange, for ``decode_inputs`` and ``decode_outputs``.

    Raises:
        NotComparableError: ``raw_body`` (HTTP without a header says nothing of itself).
        InvalidRequestError: the exchange is not what its transport says.
    """
    if any(not tensor.datatype for tensor in parsed.inputs):
        raise NotComparableError("raw_body", "a raw body says neither datatype nor shape")
    inputs = tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in parsed.inputs)
    return Signature(inputs, _outputs(exchange), 0, "", "")


def _outputs(exchange: Exchange) -> tuple[TensorSpec, ...]:
    if exchange.response is None:
        return ()
    body = bytes(exchange.response)
    if exchange.transport == "http":
        found = _from_json(body, exchange.response_header_bytes)
    else:
        if exchange.transport == "stream":
            body = within_element(body)
        try:
            message = pb.ModelInferResponse.FromString(body)
        except DecodeError:
            raise InvalidRequestError("the answer is malformed") from None
        found = [TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in message.outputs]
    for spec in found:
        if spec.datatype not in BY_NAME:
            raise InvalidRequestError(f"output {spec.name!r} has an unknown datatype")
    return tuple(found)


def _from_json(body: bytes, header_bytes: int | None) -> list[TensorSpec]:
    try:
        document = json.loads(body[:header_bytes])
        return [
            TensorSpec(str(one["name"]), str(one["datatype"]), tuple(map(int, one["shape"])))
            for one in document["outputs"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequestError(f"the answer is malformed: {error!r}") from None


def looks_batched(inputs: dict[str, Array], outputs: dict[str, Array] | None) -> bool:
    """Whether all tensors have the same first axis."""
    arrays = [*inputs.values(), *(outputs or {}).values()]
    if any(array.ndim == 0 for array in arrays):
        return False
    return len({len(array) for array in arrays}) == 1
