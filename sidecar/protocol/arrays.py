"""From a request's inputs to arrays, checked against what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from sidecar.errors import InvalidRequestError, UnsupportedError
from sidecar.gateway.messages import InferRequest, InputTensor, RegionRef
from sidecar.protocol.datatypes import BY_NAME, DataType
from sidecar.runtimes.base import Array, TensorSpec

ReadRegion = Callable[[RegionRef], "memoryview | Array"]

_BOOL = BY_NAME["BOOL"]

#: An empty tensor has no bytes that would bound its other dimensions, and a model may well make an
#: output of them: ``[0, 2**40]``, summed over the first, is 4 TiB of zeros.
_EMPTY_ELEMENTS_MAX = 2**26


def materialize(
    request: InferRequest,
    specs: Mapping[str, TensorSpec],
    max_batch_size: int,
    read_region: ReadRegion | None = None,
) -> dict[str, Array]:
    """Check a request's inputs against a model's and give them as arrays.

    Args:
        request: as a transport has read it.
        specs: the model's inputs by name (made once for each copy, not for each request).
        max_batch_size: as in ``Signature``; 0: the first dimension is no batch.
        read_region: reads shared memory; ``None``: it is not offered.

    Returns:
        name → C-contiguous array of the declared shape and dtype; numeric ones are views of the
        request's buffers and read-only.

    Raises:
        InvalidRequestError: names the input, what was sent, and what is expected.
        RequestError: what ``read_region`` raises.
    """
    arrays: dict[str, Array] = {}
    for tensor in request.inputs:
        spec = specs.get(tensor.name)
        if spec is None:
            if tensor.name == "" and len(specs) == 1:
                # HTTP's raw body: the only input, as the model has it. (No other input may be
                # without a name: both decoders see to it.)
                spec = next(iter(specs.values()))
                _complete_raw(tensor, spec)
            else:
                known = ", ".join(f"'{name}'" for name in specs)
                text = f"unexpected input '{tensor.name}'; model '{request.model_name}' takes "
                raise InvalidRequestError(text + known)
        if spec.name in arrays:
            text = f"input '{spec.name}' is given twice"
            raise InvalidRequestError(text)
        _check_tensor(tensor, spec)
        arrays[spec.name] = _to_array(tensor, read_region)
    if len(arrays) < len(specs):
        missing = [s.name for s in specs.values() if s.name not in arrays and not s.optional]
        if missing:
            names = ", ".join(f"'{name}'" for name in missing)
            text = f"model '{request.model_name}' needs input {names}, which is not given"
            raise InvalidRequestError(text)
    if max_batch_size and arrays:
        _check_batch(arrays, max_batch_size)
    return arrays


def _complete_raw(tensor: InputTensor, spec: TensorSpec) -> None:
    """Work out datatype and shape of a raw body from the model: at most one dimension is free."""
    datatype = BY_NAME[spec.datatype]
    tensor.name, tensor.datatype = spec.name, spec.datatype
    free = [index for index, size in enumerate(spec.shape) if size < 0]
    known = prod(size for size in spec.shape if size >= 0)
    if datatype.item_bytes == 0 or len(free) > 1:
        text = f"input '{spec.name}' ({spec.datatype} {list(spec.shape)}) cannot be sent as a raw "
        text += "body, from which its shape does not follow; send a JSON header with it"
        raise InvalidRequestError(text)
    shape = list(spec.shape)
    if free:
        raw = tensor.raw if tensor.raw is not None else b""
        row = known * datatype.item_bytes
        if row == 0 or len(raw) % row:
            text = f"a raw body of {len(raw)} bytes is no multiple of {row} bytes, one row of "
            text += f"input '{spec.name}'"
            raise InvalidRequestError(text)
        shape[free[0]] = len(raw) // row
    tensor.shape = tuple(shape)


def known_datatype(name: str, tensor: str) -> DataType:
    """The datatype of that name.

    Raises:
        InvalidRequestError: there is none; names the input ``tensor``, and those that there are.
    """
    try:
        return BY_NAME[name]
    except KeyError:
        text = f"input '{tensor}' has the unknown datatype '{name}'; known are: "
        raise InvalidRequestError(text + ", ".join(BY_NAME)) from None


def _check_tensor(tensor: InputTensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        known_datatype(tensor.datatype, tensor.name)
        text = f"input '{spec.name}' is {spec.datatype}, not {tensor.datatype}"
        raise InvalidRequestError(text)
    shape = tensor.shape
    if len(shape) != len(spec.shape):
        text = f"input '{spec.name}' has {len(spec.shape)} dimensions {list(spec.shape)}, the "
        text += f"request gives {len(shape)}: {list(shape)}"
        raise InvalidRequestError(text)
    for given, expected in zip(shape, spec.shape, strict=True):
        if given != expected if expected >= 0 else given < 0:
            text = f"input '{spec.name}' has shape {list(spec.shape)} (-1: any size), the request "
            text += f"gives {list(shape)}"
            raise InvalidRequestError(text)


def _check_batch(arrays: dict[str, Array], max_batch_size: int) -> None:
    first = next(iter(arrays))
    rows = arrays[first].shape[0]
    if rows <= max_batch_size and len(arrays) == 1:
        return  # nearly always
    for name, array in arrays.items():
        # Some models would broadcast one row over many; in a batch they would meet others' rows.
        if array.shape[0] != rows:
            text = f"input '{name}' has {array.shape[0]} rows, input '{first}' has {rows}; the "
            text += "first dimension is the batch and must be the same for every input"
            raise InvalidRequestError(text)
        if array.shape[0] > max_batch_size:
            text = f"input '{name}' has {array.shape[0]} rows; this model takes at most "
            text += f"{max_batch_size} in one request"
            raise InvalidRequestError(text)


def _to_array(tensor: InputTensor, read_region: ReadRegion | None) -> Array:
    datatype = BY_NAME[tensor.datatype]
    count = prod(tensor.shape)
    if count == 0 and prod(size for size in tensor.shape if size) > _EMPTY_ELEMENTS_MAX:
        text = f"input '{tensor.name}' is empty, but its shape {list(tensor.shape)} is enormous "
        text += "in its other dimensions"
        raise InvalidRequestError(text)
    if tensor.array is not None:
        if tensor.array.size != count:
            text = f"input '{tensor.name}' of shape {list(tensor.shape)} has {count} elements, the "
            text += f"request gives {tensor.array.size}"
            raise InvalidRequestError(text)
        return tensor.array.reshape(tensor.shape)
    if tensor.region is not None:
        if read_region is None:
            text = "shared memory is not offered here"
            raise UnsupportedError(text)
        raw: Any = read_region(tensor.region)
    else:
        raw = tensor.raw
    if datatype.item_bytes == 0:
        return split_bytes(raw, count, tensor.name).reshape(tensor.shape)
    expected = count * datatype.item_bytes
    if len(raw) != expected:
        text = f"input '{tensor.name}' ({datatype.name} {list(tensor.shape)}) takes {expected} "
        text += f"bytes, the request gives {len(raw)}"
        raise InvalidRequestError(text)
    array: Array = np.frombuffer(raw, datatype.numpy)
    if not array.flags.aligned:
        array = array.copy()  # a view at an odd offset of the body: kernels want alignment
    if datatype is _BOOL and count and array.view(np.uint8).max() > 1:
        # Masks are sent as 255 as well; to compiled code a bool that is neither 0 nor 1 is
        # undefined behaviour.
        array = array.view(np.uint8) != 0
    return array.reshape(tensor.shape)


def split_bytes(raw: bytes | memoryview, count: int, name: str) -> Array:
    """Split raw BYTES (each element behind a 4-byte little-endian length) into an object array.

    Raises:
        InvalidRequestError: a length points past the end, or the number of elements differs.
    """
    data = bytes(raw)
    size = len(data)
    if count * 4 > size:  # before allocating: a shape may promise any number of elements
        text = f"input '{name}' promises {count} elements, but its {size} bytes cannot hold them"
        raise InvalidRequestError(text)
    array = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        end = position + 4
        length = int.from_bytes(data[position:end], "little")
        if end > size or end + length > size:
            text = f"input '{name}': element {index} claims {length} bytes, "
            text += f"{max(size - end, 0)} are left"
            raise InvalidRequestError(text)
        array[index] = data[end : end + length]
        position = end + length
    if position != size:
        text = f"input '{name}': {size - position} bytes are left over after {count} elements"
        raise InvalidRequestError(text)
    return array
