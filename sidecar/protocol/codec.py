"""From the bytes of a ``ModelInferRequest`` to the path's own request, without knowing the model.

``arrays.py`` checks what comes out of it against a model; ``encode.py`` writes the answer. Tensor
data is copied as rarely as can be: large bodies are not given to the protobuf parser at all, which
would copy each raw tensor twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from sidecar.errors import InvalidRequestError
from sidecar.gateway.messages import (
    InferRequest,
    InputTensor,
    OutputRequest,
    ParameterValue,
    RegionRef,
)
from sidecar.protocol.arrays import known_datatype
from sidecar.protocol.fields import MalformedError, spans
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Array

#: Bodies over this are cut into head and raw tensors before parsing. Below it, one parse of the
#: whole is faster than walking the fields in Python.
SPLIT_BYTES = 64 * 1024

_RAW_INPUTS = 7

#: numpy's limit on dimensions; no shape is read further than one beyond it.
_RANK_MAX = 64
#: Of one ``parameters`` map. Each costs a few steps in Python, with its lock held, and 64 MiB hold
#: millions of them; real requests have a handful.
_PARAMETERS_MAX = 1024

#: Request parameters with a meaning here or at another server; `triton_` is its own namespace, in
#: which an unknown name is a mistake rather than a custom parameter.
_KNOWN_TRITON = frozenset({"triton_enable_empty_final_response"})


def parse_request(body: bytes, request_id: str = "") -> InferRequest:
    """Read a serialized ``ModelInferRequest``.

    Raises:
        InvalidRequestError: not a ``ModelInferRequest``, or it contradicts itself.
    """
    raws: list[Any] | None = None
    head = body
    if len(body) > SPLIT_BYTES:
        head, raws = _split_raw(body)
    try:
        message = pb.ModelInferRequest.FromString(head)
    except DecodeError:
        text = "the body is not a ModelInferRequest (protobuf cannot decode it)"
        raise InvalidRequestError(text) from None
    contents = message.raw_input_contents if raws is None else raws
    inputs = _parse_inputs(message, contents)
    request = InferRequest(
        message.model_name, message.model_version, message.id, request_id, inputs
    )
    request.nbytes = len(body)
    if message.outputs:
        request.outputs = [_parse_output(output) for output in message.outputs]
    if message.parameters:
        request.parameters = parse_parameters(message.parameters)
        check_parameters(request.parameters)
    return request


def _parse_inputs(message: pb.ModelInferRequest, raws: Sequence[Any]) -> list[InputTensor]:
    inputs: list[InputTensor] = []
    has_raw = len(raws) > 0
    taken = 0
    for tensor in message.inputs:
        # A slice, because that is one call; and bounded, because 64 MiB can hold as many sizes.
        shape = tuple(tensor.shape[: _RANK_MAX + 1])
        item = InputTensor(tensor.name, tensor.datatype, shape)
        if not item.name:
            text = f"inputs[{len(inputs)}] has no name"
            raise InvalidRequestError(text)
        if tensor.parameters:
            item.region = parse_region(parse_parameters(tensor.parameters), tensor.name)
        if tensor.HasField("contents"):
            _check_one_form(item, has_raw=has_raw)
            item.array = _typed_contents(tensor)
        elif item.region is None:
            if taken < len(raws):
                item.raw = raws[taken]
                taken += 1
            elif has_raw:
                text = f"raw_input_contents has {len(raws)} entries, too few for the inputs: "
                text += f"none is left for '{tensor.name}'"
                raise InvalidRequestError(text)
            else:
                # No data in any form: right for an empty tensor, and checked as raw bytes.
                item.raw = b""
        inputs.append(item)
    if taken < len(raws):
        text = f"raw_input_contents has {len(raws)} entries, but only {taken} inputs are sent raw"
        raise InvalidRequestError(text)
    return inputs


def _check_one_form(item: InputTensor, *, has_raw: bool) -> None:
    """Refuse an input with contents that has its data in another form as well."""
    if has_raw:
        text = f"input '{item.name}' has contents while raw_input_contents is used; "
        text += "send all inputs in one form"
        raise InvalidRequestError(text)
    if item.region is not None:
        text = f"input '{item.name}' has both contents and a shared-memory region"
        raise InvalidRequestError(text)


def _typed_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Array:
    """Convert ``contents`` to a flat array of the tensor's declared datatype."""
    datatype = known_datatype(tensor.datatype, tensor.name)
    if datatype.contents_field is None:
        text = f"input '{tensor.name}': {datatype.name} has no typed contents; send it raw"
        raise InvalidRequestError(text)
    contents = tensor.contents
    for field, _ in contents.ListFields():
        if field.name != datatype.contents_field:
            text = f"input '{tensor.name}' is {datatype.name}, so its data belongs in "
            text += f"{datatype.contents_field}, not {field.name}"
            raise InvalidRequestError(text)
    values = getattr(contents, datatype.contents_field)
    if datatype.name == "BYTES":
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
        return array
    wide: Array = np.array(values, dtype=_WIDE[datatype.contents_field])
    if wide.dtype == datatype.numpy:
        return wide
    # Only narrow integers travel in a wider field; the protocol's names of them are numpy's.
    info = np.iinfo(datatype.name.lower())
    if wide.size and (wide.min() < info.min or wide.max() > info.max):
        text = f"input '{tensor.name}' has a value outside {datatype.name} "
        text += f"({info.min} to {info.max})"
        raise InvalidRequestError(text)
    return wide.astype(datatype.numpy)


_WIDE = {
    "bool_contents": np.bool_, "int_contents": np.int32, "int64_contents": np.int64,
    "uint_contents": np.uint32, "uint64_contents": np.uint64, "fp32_contents": np.float32,
    "fp64_contents": np.float64,
}  # fmt: skip


def _parse_output(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> OutputRequest:
    wanted = OutputRequest(output.name)
    if output.parameters:
        parameters = parse_parameters(output.parameters)
        wanted.region = parse_region(parameters, output.name)
        wanted.classification = parse_classification(parameters, output.name)
        if wanted.region is not None and wanted.classification:
            text = f"output '{output.name}': classification cannot go to shared memory"
            raise InvalidRequestError(text)
    return wanted


def parse_parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, ParameterValue]:
    """Read a ``parameters`` map; a value without any choice set is an error."""
    values: dict[str, ParameterValue] = {}
    if len(parameters) > _PARAMETERS_MAX:
        text = f"{len(parameters)} parameters are given; at most {_PARAMETERS_MAX} are taken"
        raise InvalidRequestError(text)
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            text = f"parameter '{name}' has no value of a known type"
            raise InvalidRequestError(text)
        values[name] = getattr(parameter, choice)
    return values


def check_parameters(parameters: Mapping[str, ParameterValue]) -> None:
    """Refuse request parameters whose name or type cannot be meant."""
    for name, value in parameters.items():
        if name.startswith("triton_") and name not in _KNOWN_TRITON:
            text = f"parameter '{name}' is unknown: names that begin with triton_ are reserved"
            raise InvalidRequestError(text)
        if name == "timeout" and (
            isinstance(value, bool) or not isinstance(value, int) or value < 0
        ):
            text = f"parameter 'timeout' is a whole number of microseconds (0: none), not {value!r}"
            raise InvalidRequestError(text)
        if name == "sequence_id" and (
            isinstance(value, bool | float) or not isinstance(value, int | str)
        ):
            text = f"parameter 'sequence_id' is an integer or a string, not {value!r}"
            raise InvalidRequestError(text)
        if name in ("sequence_start", "sequence_end") and not isinstance(value, bool):
            text = f"parameter '{name}' is a bool, not {value!r}"
            raise InvalidRequestError(text)


_REGION_KEYS = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


def parse_region(parameters: Mapping[str, ParameterValue], name: str) -> RegionRef | None:
    """Read a tensor's shared-memory reference from its parameters; ``None``: it has none."""
    region = parameters.get(_REGION_KEYS[0])
    if region is None:
        for key in _REGION_KEYS[1:]:
            if key in parameters:
                text = f"'{name}': {key} is given without shared_memory_region"
                raise InvalidRequestError(text)
        return None
    size = parameters.get(_REGION_KEYS[1])
    offset = parameters.get(_REGION_KEYS[2], 0)
    if not isinstance(region, str):
        text = f"'{name}': shared_memory_region must be a string"
        raise InvalidRequestError(text)
    for key, value in ((_REGION_KEYS[1], size), (_REGION_KEYS[2], offset)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            text = f"'{name}': {key} must be a whole number of bytes, not {value!r}"
            raise InvalidRequestError(text)
    assert isinstance(size, int)
    assert isinstance(offset, int)
    return RegionRef(region, size, offset)


def parse_classification(parameters: Mapping[str, ParameterValue], name: str) -> int:
    """Read an output's ``classification`` parameter: how many classes; 0: none asked for."""
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        text = f"output '{name}': classification must be a number of classes, not {count!r}"
        raise InvalidRequestError(text)
    return count


def _split_raw(body: bytes) -> tuple[bytes, list[memoryview]]:
    """Cut ``raw_input_contents`` out of a serialized request, without copying it.

    Returns the rest (parsed as usual) and a view of each raw tensor. Only the top level is walked:
    a few steps, whatever the size.
    """
    try:
        found = spans(body)
    except MalformedError as error:
        text = f"the body is not a ModelInferRequest ({error})"
        raise InvalidRequestError(text) from None
    view = memoryview(body)
    raws: list[memoryview] = []
    rest: list[memoryview] = []
    kept_from = 0
    for number, start, value, end in found:
        if number == _RAW_INPUTS:
            raws.append(view[value:end])
            rest.append(view[kept_from:start])
            kept_from = end
    rest.append(view[kept_from:])
    return b"".join(rest), raws
