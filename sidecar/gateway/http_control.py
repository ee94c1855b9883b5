"""The JSON of calls that are not inference: protobuf answers as Triton's HTTP server writes them.

``google.protobuf.json_format`` was rejected for the answers: it writes 64-bit integers as strings,
where every client of this protocol reads numbers, and it leaves out what is zero.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from sidecar.errors import InvalidRequestError
from sidecar.protocol.json_data import brief, check_text, parse_json
from sidecar.protocol.pb import inference_pb2 as pb

Object = dict[str, Any]


def message_to_json(message: Message, *, fill: bool = False) -> Object:
    """Return a message as plain values: field names as in the ``.proto``, integers as numbers.

    Args:
        message: any message of the protocol.
        fill: write messages that are not set as if they were empty (statistics: a client sums
            ``inference_stats.cache_hit.count`` without asking whether it is there).
    """
    result: Object = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"]
            result[field.name] = {str(key): _plain(item, value[key], fill) for key in value}
        elif field.is_repeated:
            result[field.name] = [_plain(field, item, fill) for item in value]
        elif field.has_presence and not message.HasField(field.name):
            if fill and field.containing_oneof is None:
                result[field.name] = _plain(field, value, fill)
        else:
            result[field.name] = _plain(field, value, fill)
    return result


def _plain(field: Any, value: Any, fill: bool) -> Any:
    if field.message_type is not None:
        return message_to_json(value, fill=fill)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value


def parse_object(body: bytes) -> Object:
    """Parse a control call's body: an object, or nothing at all."""
    if not body.strip():
        return {}
    document = parse_json(body, "the request's JSON")
    if type(document) is not dict:
        message = f"the request's JSON must be an object, not {brief(document)}"
        raise InvalidRequestError(message)
    return document


def _get(document: Object, key: str, kind: type, default: Any) -> Any:
    value = document.get(key, default)
    if type(value) is not kind:
        names: dict[type, str] = {bool: "true or false", str: "a string", int: "an integer"}
        message = f"{key!r} must be {names.get(kind, 'an object')}, not {brief(value)}"
        raise InvalidRequestError(message)
    return value


def _size(document: Object, key: str, default: int | None) -> int:
    if default is None and key not in document:
        message = f"{key!r} is required"
        raise InvalidRequestError(message)
    value: int = _get(document, key, int, default)
    if not 0 <= value < 2**63:
        message = f"{key!r} must be at least 0 and fit 63 bits, not {brief(value)}"
        raise InvalidRequestError(message)
    return value


# --- the model repository -----------------------------------------------------------------------


def index_request(document: Object, path: Mapping[str, str]) -> pb.RepositoryIndexRequest:
    """``{"ready": bool}``, optional."""
    return pb.RepositoryIndexRequest(
        repository_name=path.get("repository", ""), ready=_get(document, "ready", bool, False)
    )


def index_answer(response: pb.RepositoryIndexResponse) -> list[Object]:
    """A list; what is empty is left out."""
    models = (message_to_json(model) for model in response.models)
    return [{key: value for key, value in model.items() if value} for model in models]


def load_request(document: Object, path: Mapping[str, str]) -> pb.RepositoryModelLoadRequest:
    """``parameters``: ``config`` (a string) and ``file:NAME`` (base64), as Triton takes them."""
    request = pb.RepositoryModelLoadRequest(
        repository_name=path.get("repository", ""), model_name=path["model"]
    )
    for key, value in _get(document, "parameters", dict, {}).items():
        _set_repository_parameter(request.parameters[check_text(key, "a key")], key, value)
    return request


def unload_request(document: Object, path: Mapping[str, str]) -> pb.RepositoryModelUnloadRequest:
    """``parameters``: ``unload_dependents``."""
    request = pb.RepositoryModelUnloadRequest(
        repository_name=path.get("repository", ""), model_name=path["model"]
    )
    for key, value in _get(document, "parameters", dict, {}).items():
        _set_repository_parameter(request.parameters[check_text(key, "a key")], key, value)
    return request


def _set_repository_parameter(target: pb.ModelRepositoryParameter, key: str, value: Any) -> None:
    if key.startswith("file:") and type(value) is str:
        target.bytes_param = _base64(value, key)
    elif type(value) is str:
        target.string_param = check_text(value, key)
    elif type(value) is bool:
        target.bool_param = value
    elif type(value) is int and -(2**63) <= value < 2**63:
        target.int64_param = value
    else:
        message = f"parameter {brief(key)} must be a string, a boolean or a 64-bit integer, "
        raise InvalidRequestError(message + f"not {brief(value)}")


def _base64(value: str, key: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        message = f"{brief(key)} is not base64"
        raise InvalidRequestError(message) from None


# --- shared memory ------------------------------------------------------------------------------


def system_register_request(
    document: Object, path: Mapping[str, str]
) -> pb.SystemSharedMemoryRegisterRequest:
    """``{"key": str, "byte_size": int, "offset": int}``; the offset is optional."""
    if "key" not in document:
        message = "'key' is required: the name the region was created with"
        raise InvalidRequestError(message)
    return pb.SystemSharedMemoryRegisterRequest(
        name=path["region"],
        key=check_text(_get(document, "key", str, ""), "key"),
        offset=_size(document, "offset", 0),
        byte_size=_size(document, "byte_size", None),
    )


def cuda_register_request(
    document: Object, path: Mapping[str, str]
) -> pb.CudaSharedMemoryRegisterRequest:
    """``{"raw_handle": {"b64": str}, "device_id": int, "byte_size": int}``."""
    handle = _get(document, "raw_handle", dict, {})
    return pb.CudaSharedMemoryRegisterRequest(
        name=path["region"],
        raw_handle=_base64(_get(handle, "b64", str, ""), "b64"),
        device_id=_size(document, "device_id", 0),
        byte_size=_size(document, "byte_size", None),
    )


def regions_answer(
    response: pb.SystemSharedMemoryStatusResponse | pb.CudaSharedMemoryStatusResponse,
) -> list[Object]:
    """A list of regions, by name (gRPC has a map)."""
    return [message_to_json(response.regions[name]) for name in sorted(response.regions)]


# --- settings -----------------------------------------------------------------------------------


def trace_request(document: Object, path: Mapping[str, str]) -> pb.TraceSettingRequest:
    """Values are strings or lists of strings; ``null`` clears a setting."""
    request = pb.TraceSettingRequest(model_name=path.get("model", ""))
    for key, value in document.items():
        values = [] if value is None else value if type(value) is list else [value]
        for item in values:
            if type(item) not in {str, int}:
                message = f"{brief(key)} must be a string or a list of strings, not {brief(item)}"
                raise InvalidRequestError(message)
        texts = [item if type(item) is str else brief(item) for item in values]
        request.settings[check_text(key, "a key")].value.extend(
            check_text(text, key) for text in texts
        )
    return request


def trace_answer(response: pb.TraceSettingResponse) -> Object:
    """``trace_level`` is a list, the others are strings."""
    answer: Object = {}
    for key in sorted(response.settings):
        values = list(response.settings[key].value)
        answer[key] = values if key == "trace_level" or len(values) > 1 else "".join(values)
    return answer


def log_request(document: Object, _path: Mapping[str, str]) -> pb.LogSettingsRequest:
    """Booleans, an integer, or strings; ``null`` leaves a setting as it is."""
    request = pb.LogSettingsRequest()
    for key, value in document.items():
        if value is None:
            continue
        target = request.settings[check_text(key, "a key")]
        if type(value) is bool:
            target.bool_param = value
        elif type(value) is int and 0 <= value < 2**32:
            target.uint32_param = value
        elif type(value) is str:
            target.string_param = check_text(value, key)
        else:
            message = f"{brief(key)} must be a boolean, a string, or an integer of 32 bits, "
            raise InvalidRequestError(message + f"not {brief(value)}")
    return request


def log_answer(response: pb.LogSettingsResponse) -> Object:
    """Values as they are: booleans, integers, strings."""
    answer: Object = {}
    for key in sorted(response.settings):
        setting = response.settings[key]
        chosen = setting.WhichOneof("parameter_choice")
        answer[key] = None if chosen is None else getattr(setting, chosen)
    return answer
