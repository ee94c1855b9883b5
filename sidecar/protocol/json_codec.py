"""The HTTP form of an inference: JSON, the binary tensor extension, and raw bodies.

::

    body = JSON                                      no header
    body = JSON ‖ binary of input 1 ‖ binary of 2 …  Inference-Header-Content-Length: len(JSON)
    body = binary of the only input                  Inference-Header-Content-Length: 0

Responses have the first two forms. All numbers little-endian; a BYTES element stands behind its
4-byte length. Names, shapes and sizes are checked against the model later, on the request's path;
what is checked here is that the request is what its own text says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sidecar.errors import InvalidRequestError
from sidecar.gateway.messages import (
    InferRequest,
    InferResponse,
    InputTensor,
    OutputRequest,
    OutputTensor,
    ParameterValue,
    RegionRef,
)
from sidecar.protocol.codec import check_parameters
from sidecar.protocol.datatypes import BY_NAME, DataType
from sidecar.protocol.encode import raw_bytes
from sidecar.protocol.json_data import (
    RANK_MAX,
    array_from_json,
    array_to_json,
    brief,
    check_text,
    parse_json,
)

#: An input of this name is "the model's only input": a raw body names none. Its datatype is ``""``
#: and its shape ``()``: the path takes all three from the model's signature, with the one dynamic
#: dimension found from the number of bytes.
ONLY_INPUT = ""

Object = dict[str, Any]
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a request's URL and headers say.

    Attributes:
        model_name, model_version: from the URL; ``""`` for the default version.
        request_id: our identity for the request.
        json_bytes: the header ``Inference-Header-Content-Length``; ``None`` without one.
        traceparent: as received, or ``""``.
        received_ns: monotonic, when the body was complete.
        point: as of ``InferRequest``.
    """

    model_name: str
    model_version: str
    request_id: str
    json_bytes: int | None = None
    traceparent: str = ""
    received_ns: int = 0
    point: float | None = None


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response's body in pieces.

    Attributes:
        parts: the pieces, in order.
        json_bytes: set when binary data follows the JSON; counted before any compression.
        encoding: the ``Content-Encoding`` of the pieces; ``""``: none.
    """

    parts: list[bytes | memoryview]
    json_bytes: int | None
    encoding: str = ""


# --- requests -----------------------------------------------------------------------------------


def decode_request(body: bytes, envelope: Envelope) -> tuple[InferRequest, bool]:
    """Decode an inference request.

    Raw tensors are views of ``body``, not copies.

    Returns:
        The request, and whether outputs that do not say otherwise are answered in binary.

    Raises:
        InvalidRequestError: nothing else, whatever the bytes are.
    """
    request = InferRequest(
        model_name=envelope.model_name,
        model_version=envelope.model_version,
        id="",
        request_id=envelope.request_id,
        inputs=[],
        nbytes=len(body),
        traceparent=envelope.traceparent,
        received_ns=envelope.received_ns,
        point=envelope.point,
    )
    view = memoryview(body)
    if envelope.json_bytes == 0:
        request.inputs = [InputTensor(ONLY_INPUT, "", (), raw=view)]
        return request, True
    split = len(body) if envelope.json_bytes is None else envelope.json_bytes
    if split > len(body):
        message = f"Inference-Header-Content-Length is {split}, but the body has {len(body)} bytes"
        raise InvalidRequestError(message)
    document = parse_json(view[:split], "the request's JSON")
    if type(document) is not dict:
        message = f"the request's JSON must be an object, not {brief(document)}"
        raise InvalidRequestError(message)
    request.id = check_text(_optional(document, "id", str, "the request", ""), "the id")
    parameters = _parameters(document.get("parameters"), "the request")
    binary = _take_bool(parameters, "binary_data_output", "the request") or False
    check_parameters(parameters)
    request.parameters = parameters
    request.inputs = _inputs(document, view[split:])
    request.outputs = [_output(item, index) for index, item in enumerate(_items(document))]
    return request, binary


def _optional(node: Object, key: str, kind: type, where: str, default: Any) -> Any:
    """``null`` counts as absent: clients made from data classes send it."""
    value = node.get(key)
    if value is None:
        return default
    if type(value) is not kind:
        names: dict[type, str] = {str: "a string", list: "a list"}
        message = f"{where}: {key!r} must be {names[kind]}, not {brief(value)}"
        raise InvalidRequestError(message)
    return value


def _items(document: Object) -> list[Any]:
    outputs: list[Any] = _optional(document, "outputs", list, "the request", [])
    return outputs


def _parameters(value: Any, where: str) -> dict[str, ParameterValue]:
    if value is None:
        return {}
    if type(value) is not dict:
        message = f"{where}: 'parameters' must be an object, not {brief(value)}"
        raise InvalidRequestError(message)
    for key, item in value.items():
        check_text(key, f"{where}: a parameter's name")
        if type(item) is str:
            check_text(item, f"{where}: parameter {brief(key)}")
        if type(item) is int and not -_INT64_MAX - 1 <= item <= 2**64 - 1:
            message = f"{where}: parameter {brief(key)} does not fit 64 bits: {brief(item)}"
            raise InvalidRequestError(message)
        if type(item) not in {bool, int, float, str}:
            message = f"{where}: parameter {brief(key)} must be a boolean, a number or a string"
            raise InvalidRequestError(f"{message}, not {'null' if item is None else brief(item)}")
    return value


def _take_bool(parameters: dict[str, ParameterValue], key: str, where: str) -> bool | None:
    value = parameters.pop(key, None)
    if value is None or type(value) is bool:
        return value
    message = f"{where}: {key} must be true or false, not {brief(value)}"
    raise InvalidRequestError(message)


def _take_size(parameters: dict[str, ParameterValue], key: str, where: str) -> int | None:
    value = parameters.pop(key, None)
    if value is None or (type(value) is int and 0 <= value <= _INT64_MAX):
        return value
    message = f"{where}: {key} must be an integer of at least 0, not {brief(value)}"
    raise InvalidRequestError(message)


def _take_region(parameters: dict[str, ParameterValue], where: str) -> RegionRef | None:
    region = parameters.pop("shared_memory_region", None)
    byte_size = _take_size(parameters, "shared_memory_byte_size", where)
    offset = _take_size(parameters, "shared_memory_offset", where)
    if region is None:
        if byte_size is not None or offset is not None:
            message = f"{where}: shared memory without shared_memory_region"
            raise InvalidRequestError(message)
        return None
    if type(region) is not str or not region:
        message = f"{where}: shared_memory_region must be a region's name, not {brief(region)}"
        raise InvalidRequestError(message)
    if byte_size is None:
        message = f"{where}: shared_memory_region needs shared_memory_byte_size"
        raise InvalidRequestError(message)
    return RegionRef(region, byte_size, offset or 0)


def _named(item: Any, index: int, what: str) -> tuple[str, str]:
    """Return an input's or output's name, and how messages call it."""
    where = f"{what}s[{index}]"
    if type(item) is not dict:
        message = f"{where} must be an object, not {brief(item)}"
        raise InvalidRequestError(message)
    name = item.get("name")
    if type(name) is not str or not name:
        message = f"{where}: 'name' must be a string that is not empty"
        raise InvalidRequestError(message)
    return check_text(name, f"{where}: 'name'"), f"{what} {brief(name)}"


def _inputs(document: Object, binary: memoryview) -> list[InputTensor]:
    items: list[Any] = _optional(document, "inputs", list, "the request", [])
    if not items:
        message = "the request has no 'inputs'"
        raise InvalidRequestError(message)
    inputs: list[InputTensor] = []
    position = 0
    for index, item in enumerate(items):
        tensor, size = _input(item, index)
        if size is not None:
            if position + size > len(binary):
                message = f"input {brief(tensor.name)}: binary_data_size is {size}, but "
                message += f"{len(binary) - position} bytes are left in the body"
                if not len(binary):
                    message += " (is Inference-Header-Content-Length set?)"
                raise InvalidRequestError(message)
            tensor.raw = binary[position : position + size]
            position += size
        inputs.append(tensor)
    if position != len(binary):
        message = f"the body has {len(binary) - position} bytes that no input's binary_data_size "
        message += "accounts for"
        raise InvalidRequestError(message)
    return inputs


def _input(item: Any, index: int) -> tuple[InputTensor, int | None]:
    """Decode one input; with it, how many binary bytes belong to it (``None``: not binary)."""
    name, where = _named(item, index, "input")
    datatype = _datatype(item, where)
    shape = _shape(item, where)
    parameters = dict(_parameters(item.get("parameters"), where))
    size = _take_size(parameters, "binary_data_size", where)
    region = _take_region(parameters, where)
    data = item.get("data")
    given = [data is not None, size is not None, region is not None]
    if sum(given) != 1:
        message = f"{where} needs exactly one of data, binary_data_size and shared_memory_region; "
        raise InvalidRequestError(message + ("none is given" if not any(given) else "it has more"))
    tensor = InputTensor(name, datatype.name, shape, region=region)
    if data is not None:
        tensor.array = array_from_json(data, datatype, where)
    return tensor, size


def _datatype(item: Object, where: str) -> DataType:
    name = item.get("datatype")
    datatype = BY_NAME.get(name) if type(name) is str else None
    if datatype is None:
        message = f"{where}: datatype {brief(name)} is unknown; it is one of {', '.join(BY_NAME)}"
        raise InvalidRequestError(message)
    return datatype


def _shape(item: Object, where: str) -> tuple[int, ...]:
    shape = item.get("shape")
    if type(shape) is not list or len(shape) > RANK_MAX:
        message = f"{where}: 'shape' must be a list of at most {RANK_MAX} integers"
        raise InvalidRequestError(message)
    for size in shape:
        if type(size) is not int or not 0 <= size <= _INT64_MAX:
            message = f"{where}: 'shape' must hold integers of at least 0, not {brief(size)}"
            raise InvalidRequestError(message)
    return tuple(shape)


def _output(item: Any, index: int) -> OutputRequest:
    name, where = _named(item, index, "output")
    parameters = dict(_parameters(item.get("parameters"), where))
    output = OutputRequest(
        name,
        region=_take_region(parameters, where),
        classification=_take_size(parameters, "classification", where) or 0,
        binary=_take_bool(parameters, "binary_data", where),
    )
    if output.region is not None and (output.binary or output.classification):
        other = "binary_data" if output.binary else "classification"
        message = f"{where}: shared_memory_region and {other} exclude each other"
        raise InvalidRequestError(message)
    return output


# --- responses ----------------------------------------------------------------------------------


def encode_response(
    response: InferResponse, request: InferRequest, *, binary: bool
) -> EncodedResponse:
    """Encode an answer.

    Args:
        response: what the path gave.
        request: what was asked: each output's own ``binary`` choice is found there by name.
        binary: for outputs that made no choice.

    Raises:
        InvalidRequestError: an output cannot be written in the form that was asked for.
    """
    chosen = {output.name: output.binary for output in request.outputs}
    outputs: list[str] = []
    blobs: list[bytes | memoryview] = []
    for tensor in response.outputs:
        choice = chosen.get(tensor.name)
        text, blob = _encode_output(tensor, binary if choice is None else choice)
        outputs.append(text)
        if blob is not None:
            blobs.append(blob)
    head: Object = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = response.parameters
    # Put together as text: dumping one tree would need every tensor as a list at the same time.
    document = f'{_dumps(head)[:-1]},"outputs":[{",".join(outputs)}]}}'.encode("ascii")
    return EncodedResponse([document, *blobs], len(document) if blobs else None)


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _encode_output(tensor: OutputTensor, binary: bool) -> tuple[str, bytes | memoryview | None]:
    head: Object = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
    }
    if tensor.region is not None:
        # Nothing about the region, as Triton: the C++ client (perf_analyzer) takes any `parameters`
        # of an output for a sign of binary data.
        return _dumps(head), None
    assert tensor.array is not None  # messages.OutputTensor: only a region leaves it out
    datatype = BY_NAME[tensor.datatype]
    if not binary:
        data = array_to_json(tensor.array, datatype, f"output {brief(tensor.name)}")
        return f'{_dumps(head)[:-1]},"data":{data}}}', None
    blob = raw_bytes(tensor.array)
    head["parameters"] = {"binary_data_size": len(blob)}
    return _dumps(head), blob
