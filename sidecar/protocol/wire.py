"""What routing must know of a request, read off its wire bytes without parsing the tensors.

Of a large message only the top level is walked: a step for each field, whatever its size
(protobuf's parser copies each raw tensor twice: milliseconds for 16 MiB, where the walk takes
microseconds). It descends into the small parts of tensors to find shared memory, and into
``parameters``. What it says is what protobuf's own parser says: the last occurrence of a scalar
wins, a field of an unexpected wire type counts as unknown, unknown fields and groups are skipped.
A small message is given to that parser, which is faster than any walk in Python.

A field is changed by appending it: the last one wins, and nothing before it is re-read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from sidecar.errors import InvalidRequestError, UpstreamError
from sidecar.protocol.fields import (
    CUT_SHORT,
    LENGTH_DELIMITED,
    MAX_FIELDS,
    Buffer,
    MalformedError,
    encode_varint,
    flat,
    length_delimited,
    spans,
    subfields,
    varint,
)
from sidecar.protocol.pb import inference_pb2 as pb

ParameterValue = bool | int | float | str

#: Up to this size a parse of the whole (2 µs) beats the walk (4.5 µs).
PARSED_BYTES = 4096

_NAME, _VERSION, _ID, _PARAMETERS = 1, 2, 3, 4
_RAW_OUTPUTS = 6
_ELEMENT_ERROR, _ELEMENT_ANSWER = 1, 2  # of ModelStreamInferResponse
_ENTRY_KEY, _ENTRY_VALUE = 0x0A, 0x12  # tags in an entry of a map
_REGION = "shared_memory_region"
_REGION_KEY = _REGION.encode()
#: Tensors up to this size are searched for the key before they are walked: one ``memmem`` instead
#: of a walk. Over it, contents may be inside, and a search would be O(bytes).
_SEARCH_BYTES = 1024
#: Where a message's tensors keep their parameters: field of the tensors → field of the map.
_REQUEST_TENSORS = {5: 4, 6: 2}
_RESPONSE_TENSORS = {5: 4}


@dataclass(slots=True)
class Envelope:
    """A message without its tensors.

    Attributes:
        model_name, model_version, id: ``""`` where absent.
        parameters: field 4; those whose value is of no known type are left out.
        uses_shared_memory: an input or output has the parameter ``shared_memory_region``.
    """

    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, ParameterValue] = field(default_factory=dict)
    uses_shared_memory: bool = False


def scan_request(body: Buffer) -> Envelope:
    """Read the envelope of a serialized ``ModelInferRequest``.

    Raises:
        InvalidRequestError: it is none, or has more than ``MAX_FIELDS`` fields.
    """
    try:
        if len(body) <= PARSED_BYTES:
            request = pb.ModelInferRequest.FromString(body)  # type: ignore[arg-type]
            return _of_message(request, body, (request.inputs, request.outputs))
        return _walk(body, _REQUEST_TENSORS)
    except (DecodeError, MalformedError, UnicodeDecodeError) as error:
        text = f"the body is not a ModelInferRequest ({_reason(error)})"
    raise InvalidRequestError(text)


def scan_response(body: Buffer) -> Envelope:
    """Read the envelope of a serialized ``ModelInferResponse``.

    Raises:
        UpstreamError: INTERNAL; it is none. (Whoever made it is at fault, not the client.)
    """
    try:
        if len(body) <= PARSED_BYTES:
            response = pb.ModelInferResponse.FromString(body)  # type: ignore[arg-type]
            return _of_message(response, body, (response.outputs,))
        return _walk(body, _RESPONSE_TENSORS)
    except (DecodeError, MalformedError, UnicodeDecodeError) as error:
        raise _bad_answer(error) from None


def split_response(body: bytes) -> tuple[bytes, list[memoryview]]:
    """Cut ``raw_output_contents`` out of a serialized ``ModelInferResponse``.

    Returns:
        The rest, to be parsed, and a view of each raw tensor.

    Raises:
        UpstreamError: INTERNAL; the body is malformed.
    """
    try:
        found = spans(body)
    except MalformedError as error:
        raise _bad_answer(error) from None
    view = memoryview(body)
    raws = [view[value:end] for number, _, value, end in found if number == _RAW_OUTPUTS]
    rest = [view[start:end] for number, start, _, end in found if number != _RAW_OUTPUTS]
    return b"".join(rest), raws


def _bad_answer(error: Exception) -> UpstreamError:
    text = f"the upstream server's answer is not a ModelInferResponse ({_reason(error)})"
    return UpstreamError(text, "INTERNAL")


def _reason(error: Exception) -> str:
    if isinstance(error, DecodeError):
        return "protobuf cannot decode it"
    if isinstance(error, UnicodeDecodeError):
        return "a name in it is not UTF-8"
    return str(error)


def _of_message(message: Any, body: Buffer, tensors: Sequence[Any]) -> Envelope:
    envelope = Envelope(message.model_name, message.model_version, message.id)
    if message.parameters:
        for name, parameter in message.parameters.items():
            choice = parameter.WhichOneof("parameter_choice")
            if choice is not None:
                envelope.parameters[name] = getattr(parameter, choice)
    # The key is searched for first: reading each tensor's parameters costs more than all the rest.
    if _REGION_KEY in bytes(body):
        envelope.uses_shared_memory = any(
            _REGION in tensor.parameters for group in tensors for tensor in group
        )
    return envelope


def _walk(body: Buffer, tensors: Mapping[int, int]) -> Envelope:
    body = flat(body)
    envelope = Envelope()
    names: dict[int, str] = {_NAME: "", _VERSION: "", _ID: ""}
    found = spans(body)
    budget = MAX_FIELDS - len(found)
    try:
        for number, _, value, end in found:
            if number in names:
                names[number] = str(body[value:end], "utf-8")
            elif number == _PARAMETERS:
                budget = _read_parameter(body, value, end, budget, envelope.parameters)
            elif (
                number in tensors
                and not envelope.uses_shared_memory
                and (end - value > _SEARCH_BYTES or _REGION_KEY in bytes(body[value:end]))
            ):
                envelope.uses_shared_memory, budget = _has_region(
                    body, value, end, tensors[number], budget
                )
    except IndexError:
        raise MalformedError(CUT_SHORT) from None
    envelope.model_name, envelope.model_version, envelope.id = names.values()
    return envelope


def _set_aside(entry: Sequence[tuple[int, int, int]]) -> bool:
    """Protobuf's parser keeps a map entry with any unknown field out of the map, whole."""
    return any(tag not in (_ENTRY_KEY, _ENTRY_VALUE) for tag, _, _ in entry)


def _has_region(
    body: Buffer, position: int, end: int, map_field: int, budget: int
) -> tuple[bool, int]:
    """Whether a tensor's parameters have the key; its contents are stepped over."""
    wanted = map_field << 3 | LENGTH_DELIMITED
    fields, budget = subfields(body, position, end, budget)
    for tag, value, value_end in fields:
        if tag != wanted:
            continue
        entry, budget = subfields(body, value, value_end, budget)
        key = b""
        for entry_tag, key_start, key_end in entry:
            if entry_tag == _ENTRY_KEY:
                key = bytes(body[key_start:key_end])
        if key == _REGION_KEY and not _set_aside(entry):
            return True, budget
    return False, budget


def _read_parameter(
    body: Buffer, position: int, end: int, budget: int, into: dict[str, ParameterValue]
) -> int:
    """Read one entry of a ``map<string, InferParameter>``; a later entry replaces an earlier."""
    entry, budget = subfields(body, position, end, budget)
    if _set_aside(entry):
        return budget
    key = ""
    value: ParameterValue | None = None
    for tag, start, stop in entry:
        if tag == _ENTRY_KEY:
            key = str(body[start:stop], "utf-8")
        else:
            choices, budget = subfields(body, start, stop, budget)
            for choice, choice_start, choice_end in choices:
                # Two values in one entry are merged: the last choice set in either stands.
                read = _choice(body, choice, choice_start, choice_end)
                value = value if read is None else read
    if value is None:
        into.pop(key, None)
    else:
        into[key] = value
    return budget


def _choice(body: Buffer, tag: int, start: int, end: int) -> ParameterValue | None:
    """One choice of an ``InferParameter``; ``None``: of a kind not known here."""
    match tag:
        case 0x08:
            return varint(body, start)[0] != 0
        case 0x10:
            number = varint(body, start)[0]
            return number - (1 << 64) if number >> 63 else number
        case 0x1A:
            return str(body[start:end], "utf-8")
        case 0x21:
            decoded: float = struct.unpack_from("<d", body, start)[0]
            return decoded
        case 0x28:
            return varint(body, start)[0]
    return None


# --- changing by appending ------------------------------------------------------------------------


def _changes(
    envelope: Envelope, model_name: str | None, model_version: str | None, id_: str | None
) -> bytes:
    tail = b""
    if model_name is not None and model_name != envelope.model_name:
        tail += length_delimited(_NAME, model_name.encode())
    if model_version is not None and model_version != envelope.model_version:
        tail += length_delimited(_VERSION, model_version.encode())
    if id_ is not None and id_ != envelope.id:
        tail += length_delimited(_ID, id_.encode())
    return tail


def override_request(
    body: bytes,
    model_name: str | None = None,
    model_version: str | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
    *,
    envelope: Envelope | None = None,
) -> bytes:
    """Change names in a serialized ``ModelInferRequest``; ``None`` leaves one as it is.

    Args:
        envelope: what ``scan_request`` gave for this body, if it is at hand.

    Returns:
        ``body`` itself if nothing changes.

    Raises:
        InvalidRequestError: as ``scan_request``.
    """
    envelope = envelope or scan_request(body)
    tail = _changes(envelope, model_name, model_version, id)
    return body + tail if tail else body


def override_response(
    body: bytes,
    model_name: str | None = None,
    model_version: str | None = None,
    id: str | None = None,  # noqa: A002 - the field's name
    *,
    parameters: Mapping[str, ParameterValue] | None = None,
    envelope: Envelope | None = None,
) -> bytes:
    """Change names in a serialized ``ModelInferResponse``, and set parameters.

    Args:
        parameters: replace those of the same name; others stay.
        envelope: what ``scan_response`` gave for this body, if it is at hand.

    Returns:
        ``body`` itself if nothing changes.

    Raises:
        UpstreamError: as ``scan_response``.
    """
    envelope = envelope or scan_response(body)
    tail = _changes(envelope, model_name, model_version, id)
    for name, value in (parameters or {}).items():
        now = envelope.parameters.get(name)
        if now != value or type(now) is not type(value):
            tail += _parameter_entry(name, value)
    return body + tail if tail else body


def override_element(body: bytes, model_name: str, model_version: str) -> tuple[bytes, bool]:
    """Change names in a serialized ``ModelStreamInferResponse``.

    An answer is a message within it, and protobuf merges a message that occurs twice: so here,
    too, what changes is appended, and what is large is not parsed.

    Returns:
        The element (``body`` itself if nothing changes), and whether it is an error.

    Raises:
        UpstreamError: INTERNAL; it is no such element.
    """
    body_error, changes = False, b""
    try:
        found = spans(body)
    except MalformedError as error:
        raise _bad_answer(error) from None
    view = memoryview(body)
    for number, _, value, end in found:
        if number == _ELEMENT_ERROR:
            body_error = end > value
        elif number == _ELEMENT_ANSWER:
            changes = _changes(scan_response(view[value:end]), model_name, model_version, None)
    return body + length_delimited(_ELEMENT_ANSWER, changes) if changes else body, body_error


def _parameter_entry(name: str, value: ParameterValue) -> bytes:
    if isinstance(value, bool):
        choice = bytes((0x08, value))
    elif isinstance(value, int):
        # Over int64 only uint64_param can hold it; below, int64_param, which every dialect knows.
        tag = b"\x10" if value < 1 << 63 else b"\x28"
        choice = tag + encode_varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    elif isinstance(value, float):
        choice = b"\x21" + struct.pack("<d", value)
    else:
        choice = length_delimited(3, value.encode())
    entry = length_delimited(1, name.encode()) + length_delimited(2, choice)
    return length_delimited(_PARAMETERS, entry)
