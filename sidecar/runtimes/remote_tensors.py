"""Arrays to a serialized ``ModelInferRequest``, and back from whatever a server answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from sidecar.errors import InvalidRequestError, UpstreamError
from sidecar.protocol import wire
from sidecar.protocol.arrays import split_bytes
from sidecar.protocol.datatypes import BY_NAME, DataType
from sidecar.protocol.encode import raw_bytes, set_parameter
from sidecar.protocol.fields import encode_varint
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Array, TensorSpec

_RAW_INPUT_TAG = bytes([(7 << 3) | 2])
#: Answers over this are cut into head and raw tensors: the parser would copy each tensor twice.
_SPLIT_BYTES = 64 * 1024


def encode_request(
    model_name: str,
    model_version: str,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    datatypes: Mapping[str, str],
    request_id: str = "",
    parameters: Mapping[str, bool | int | float | str] | None = None,
) -> bytes:
    """Serialize arrays as a ``ModelInferRequest``, contents raw: every dialect takes that form.

    Args:
        outputs: the names to ask for; none: all.
        datatypes: input name → the protocol's datatype.
        request_id, parameters: of the request.
    """
    head = pb.ModelInferRequest(model_name=model_name, model_version=model_version, id=request_id)
    for key, value in (parameters or {}).items():
        set_parameter(head.parameters[key], value)
    parts: list[Any] = [b""]
    for name, array in inputs.items():
        head.inputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        raw = raw_bytes(array)
        parts += (_RAW_INPUT_TAG, encode_varint(len(raw)), raw)
    for name in outputs:
        head.outputs.add(name=name)
    parts[0] = head.SerializeToString()
    return b"".join(parts)


def decode_answer(
    body: bytes, specs: Mapping[str, TensorSpec], wanted: Sequence[str]
) -> list[Array]:
    """Read a serialized ``ModelInferResponse``, its contents raw or typed.

    Args:
        specs: output name → what the model declares.
        wanted: which outputs, in which order. The server may have sent more.

    Returns:
        Arrays of the declared dtypes, which own their memory.

    Raises:
        UpstreamError: INTERNAL; names what is wrong with the answer.
    """
    raws: Sequence[Any] | None = None
    head = body
    if len(body) > _SPLIT_BYTES:
        head, raws = wire.split_response(body)
    try:
        message = pb.ModelInferResponse.FromString(head)
    except DecodeError:
        raise _wrong("it is not a ModelInferResponse") from None
    raws = message.raw_output_contents if raws is None else raws
    names = [tensor.name for tensor in message.outputs]
    for name in wanted:
        if names.count(name) != 1:
            found = ", ".join(f"'{given}'" for given in names) or "none"
            raise _wrong(f"it has {names.count(name)} outputs '{name}'; its outputs: {found}")
    arrays: dict[str, Array] = {}
    taken = 0
    for tensor in message.outputs:
        # MLServer leaves empty contents beside raw ones.
        typed = bool(tensor.contents.ListFields())
        raw = None
        if raws and not typed:
            if taken >= len(raws):
                raise _wrong(f"it has {len(raws)} raw tensors, too few for its outputs")
            raw = raws[taken]
            taken += 1
        if tensor.name in wanted:
            arrays[tensor.name] = _array(tensor, raw, specs[tensor.name])
    if taken != len(raws):
        raise _wrong(f"it has {len(raws)} raw tensors for {taken} outputs")
    return [arrays[name] for name in wanted]


def _wrong(what: str) -> UpstreamError:
    return UpstreamError(f"the upstream server's answer is malformed: {what}", "INTERNAL")


def _array(tensor: Any, raw: Any, spec: TensorSpec) -> Array:
    name, shape = tensor.name, tuple(tensor.shape)
    if tensor.datatype != spec.datatype:
        raise _wrong(f"output '{name}' is {tensor.datatype or 'of no datatype'}, not "
                     f"{spec.datatype}")  # fmt: skip
    if any(size < 0 for size in shape):
        raise _wrong(f"output '{name}' has the shape {list(shape)}")
    datatype = BY_NAME[spec.datatype]
    count = prod(shape)
    if raw is None:
        return _from_typed(tensor, datatype, count).reshape(shape)
    if datatype.name == "BYTES":
        try:
            return split_bytes(raw, count, name).reshape(shape)
        except InvalidRequestError:
            text = f"output '{name}' {list(shape)}: its {len(raw)} bytes are not {count} elements"
            raise _wrong(text) from None
    if len(raw) != count * datatype.item_bytes:
        raise _wrong(
            f"output '{name}' ({datatype.name} {list(shape)}) takes {count * datatype.item_bytes} "
            f"bytes, it has {len(raw)}"
        )
    if datatype.name == "BOOL":  # any byte but 0 is true, which numpy's own view would not know
        truth: Array = np.frombuffer(raw, np.uint8) != 0
        return truth.reshape(shape)
    return np.frombuffer(raw, datatype.numpy).copy().reshape(shape)


def _from_typed(tensor: Any, datatype: DataType, count: int) -> Array:
    if datatype.contents_field is None:
        if count == 0:
            return np.empty(0, datatype.numpy)
        raise _wrong(f"output '{tensor.name}' is {datatype.name}, which has no typed contents")
    values = getattr(tensor.contents, datatype.contents_field)
    if len(values) != count:
        raise _wrong(
            f"output '{tensor.name}' ({datatype.name} {list(tensor.shape)}) has {len(values)} "
            f"elements in {datatype.contents_field}, not {count}"
        )
    if datatype.name == "BYTES":
        array: Array = np.empty(count, dtype=object)
        array[:] = list(values)
        return array
    if datatype.numpy.kind in "iu" and count:
        info: Any = np.iinfo(datatype.numpy)
        if min(values) < info.min or max(values) > info.max:
            raise _wrong(f"output '{tensor.name}' has a value outside {datatype.name}")
    return np.array(values, dtype=datatype.numpy)
