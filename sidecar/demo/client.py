"""A small client of the v2 protocol, over gRPC and HTTP: what the demo and ``infer`` send with.

Both have the same methods, so that a caller can be indifferent to the transport. Programs of your
own are better served by tritonclient or KServe's client; this one exists so that neither is needed
to try a server.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from sidecar.errors import InvalidRequestError, SidecarError
from sidecar.gateway.messages import ParameterValue
from sidecar.protocol.arrays import split_bytes
from sidecar.protocol.codec import parse_parameters
from sidecar.protocol.datatypes import BY_NAME, of_array
from sidecar.protocol.encode import raw_bytes
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Array, TensorSpec

SERVICE = "/inference.GRPCInferenceService"
#: The server bounds what it takes; the client only has to be no narrower than it.
MAX_MESSAGE_BYTES = 2**31 - 1
_JSON_LENGTH = "Inference-Header-Content-Length"


class CallFailedError(SidecarError):
    """The server refused or failed a call, or could not be reached.

    ``code`` is a gRPC status name (``"NOT_FOUND"``) or ``"HTTP 404"``; ``"UNREACHABLE"`` where no
    HTTP answer came.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """One response. ``outputs``: name → array of the model's dtype (BYTES: object of ``bytes``)."""

    model_name: str
    model_version: str
    outputs: dict[str, Array]
    parameters: dict[str, ParameterValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server says of a model; shapes have -1 where any size is allowed."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Client(Protocol):
    """What both transports offer. All calls raise ``CallFailedError``."""

    def ready(self) -> bool:
        """Ask whether the server is ready; ``False`` also when it cannot be reached."""
        ...

    def metadata(self, model: str, version: str = "") -> ModelInfo:
        """Return a model's inputs and outputs."""
        ...

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
    ) -> Answer:
        """Send one inference; ``outputs``: the names wanted, none for all."""
        ...

    def close(self) -> None:
        """Close the connection. Idempotent."""
        ...


class GrpcClient:
    """The protocol over gRPC; may be used from several threads.

    Args:
        address: ``host:port`` or ``unix:path``.
        timeout_s: deadline of each call.
    """

    def __init__(self, address: str, *, timeout_s: float = 30) -> None:
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ]
        self._channel: Any = grpc.insecure_channel(address, options=options)
        self._timeout_s = timeout_s
        self._methods: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel. Idempotent."""
        self._channel.close()

    def ready(self) -> bool:
        """Ask whether the server is ready; ``False`` also when it cannot be reached."""
        try:
            answer = self._call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse)
        except CallFailedError:
            return False
        return bool(answer.ready)

    def metadata(self, model: str, version: str = "") -> ModelInfo:
        """Return a model's inputs and outputs."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        found = self._call("ModelMetadata", request, pb.ModelMetadataResponse)

        def specs(tensors: Any) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors)

        inputs, outputs = specs(found.inputs), specs(found.outputs)
        return ModelInfo(found.name, tuple(found.versions), found.platform, inputs, outputs)

    def statistics(self, model: str = "", version: str = "") -> list[pb.ModelStatistics]:
        """Return the server's own figures, of all models when none is named."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        answer = self._call("ModelStatistics", request, pb.ModelStatisticsResponse)
        return list(answer.model_stats)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one inference, tensors raw; ``outputs``: the names wanted, none for all.

        ``metadata``: goes with the call; ``x-request-id`` names the request for later labels.
        """
        request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
        for name, array in inputs.items():
            datatype = of_array(array)
            request.inputs.add(name=name, datatype=datatype.name, shape=array.shape)
            request.raw_input_contents.append(bytes(raw_bytes(_wire_array(array))))
        for name in outputs:
            request.outputs.add(name=name)
        found = self._call("ModelInfer", request, pb.ModelInferResponse, metadata)
        if len(found.raw_output_contents) != len(found.outputs):
            message = f"{len(found.outputs)} outputs, {len(found.raw_output_contents)} raw tensors"
            raise CallFailedError(f"the answer has {message}", "INTERNAL")
        arrays = {
            tensor.name: _to_array(raw, tensor.datatype, tuple(tensor.shape), tensor.name)
            for tensor, raw in zip(found.outputs, found.raw_output_contents, strict=True)
        }
        parameters = parse_parameters(found.parameters)
        return Answer(found.model_name, found.model_version, arrays, parameters)

    def _call(
        self,
        method: str,
        request: Message,
        response: Callable[[], Any],
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        call = self._methods.get(method)
        if call is None:
            call = self._methods[method] = self._channel.unary_unary(
                f"{SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,  # type: ignore[attr-defined]
            )
        try:
            return call(request, timeout=self._timeout_s, metadata=tuple((metadata or {}).items()))
        except grpc.RpcError as error:
            raise CallFailedError(error.details() or "no details", error.code().name) from None
        except DecodeError as error:
            raise CallFailedError(f"the answer cannot be decoded: {error}", "INTERNAL") from None


class HttpClient:
    """The protocol over HTTP on one kept connection; for one thread at a time.

    Args:
        address: ``host:port``.
        binary: tensors as bytes behind the JSON (the binary extension) instead of JSON numbers.
        timeout_s: how long each send or receive may take.
    """

    def __init__(self, address: str, *, binary: bool = True, timeout_s: float = 30) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=timeout_s)
        self._binary = binary
        self._is_used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def ready(self) -> bool:
        """Ask whether the server is ready; ``False`` also when it cannot be reached."""
        try:
            self._request("GET", "/v2/health/ready")
        except CallFailedError:
            return False
        return True

    def metadata(self, model: str, version: str = "") -> ModelInfo:
        """Return a model's inputs and outputs."""
        found = _json_object(self._request("GET", _model_path(model, version))[0])

        def specs(tensors: Any) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(t["name"], t["datatype"], tuple(t["shape"])) for t in tensors)

        with _understood():
            inputs, outputs = specs(found["inputs"]), specs(found["outputs"])
            versions = tuple(found.get("versions", ()))
            return ModelInfo(found["name"], versions, found.get("platform", ""), inputs, outputs)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
    ) -> Answer:
        """Send one inference; ``outputs``: the names wanted, none for all."""
        document: dict[str, Any] = {
            "inputs": [],
            "parameters": {"binary_data_output": self._binary},
        }
        if request_id:
            document["id"] = request_id
        if outputs:
            document["outputs"] = [{"name": name} for name in outputs]
        blobs: list[bytes] = []
        for name, array in inputs.items():
            tensor: dict[str, Any] = {
                "name": name,
                "datatype": of_array(array).name,
                "shape": list(array.shape),
            }
            if self._binary:
                blobs.append(bytes(raw_bytes(_wire_array(array))))
                tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                tensor["data"] = _json_data(array)
            document["inputs"].append(tensor)
        head = json.dumps(document, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"}
        if self._binary:
            headers = {"Content-Type": "application/octet-stream", _JSON_LENGTH: str(len(head))}
        path = f"{_model_path(model, version)}/infer"
        body, json_bytes = self._request("POST", path, b"".join([head, *blobs]), headers)
        return _parse_answer(body, json_bytes)

    def _request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, int | None]:
        """Return the body, and how many of its bytes are JSON (``None``: all)."""
        try:
            status, data, json_bytes = self._exchange(method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            if not self._is_used or isinstance(error, TimeoutError):
                raise CallFailedError(_reason(error), "UNREACHABLE") from None
            # A server may close a kept connection between two requests: what was never answered
            # may be sent again, once, on a new one (all that is sent here is safe to repeat).
            self._is_used = False
            try:
                status, data, json_bytes = self._exchange(method, path, body, headers or {})
            except (OSError, http.client.HTTPException) as again:
                self._connection.close()
                raise CallFailedError(_reason(again), "UNREACHABLE") from None
        if status != http.HTTPStatus.OK:
            raise CallFailedError(_error_text(data), f"HTTP {status}")
        return data, json_bytes

    def _exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes, int | None]:
        self._connection.request(method, path, body=body or None, headers=dict(headers))
        response = self._connection.getresponse()
        data = response.read()
        self._is_used = True
        length = response.getheader(_JSON_LENGTH)
        json_bytes = int(length) if length is not None and length.isdigit() else None
        return response.status, data, json_bytes


@contextmanager
def _understood() -> Iterator[None]:
    """Turn the errors of reading a malformed answer into ``CallFailedError``."""
    try:
        yield
    except (ValueError, KeyError, TypeError, InvalidRequestError) as error:
        message = f"the server's answer is not as the protocol says: {error}"
        raise CallFailedError(message, "INTERNAL") from None


def _model_path(model: str, version: str) -> str:
    return f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _error_text(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace") or "no details"


def _json_object(data: bytes) -> dict[str, Any]:
    with _understood():
        found = json.loads(data)
        if not isinstance(found, dict):
            message = f"a JSON {type(found).__name__}, not an object"
            raise TypeError(message)
    return found


def _json_data(array: Array) -> list[Any]:
    if of_array(array).name != "BYTES":
        values: list[Any] = array.ravel().tolist()
        return values
    return [v.decode() if isinstance(v, bytes) else str(v) for v in array.ravel().tolist()]


def _parse_answer(body: bytes, json_bytes: int | None) -> Answer:
    found = _json_object(body[:json_bytes])
    arrays: dict[str, Array] = {}
    at = len(body) if json_bytes is None else json_bytes
    with _understood():
        for tensor in found["outputs"]:
            name, datatype, shape = tensor["name"], tensor["datatype"], tuple(tensor["shape"])
            size = tensor.get("parameters", {}).get("binary_data_size")
            if size is None:
                arrays[name] = _from_json(tensor["data"], datatype, shape)
            else:
                arrays[name] = _to_array(body[at : at + size], datatype, shape, name)
                at += size
        parameters = found.get("parameters", {})
        version = found.get("model_version", "")
        return Answer(found["model_name"], version, arrays, parameters)


def _from_json(data: list[Any], datatype: str, shape: tuple[int, ...]) -> Array:
    if datatype == "BYTES":
        array = np.empty(len(data), dtype=object)
        array[:] = [str(value).encode() for value in data]
        return array.reshape(shape)
    return np.asarray(data, BY_NAME[datatype].numpy).reshape(shape)


def _wire_array(array: Array) -> Array:
    """Fixed-width strings become objects: the codec writes only those as BYTES."""
    return array.astype(object) if array.dtype.kind in "SUT" else array


def _to_array(raw: bytes, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    with _understood():
        known = BY_NAME[datatype]
        if known.item_bytes == 0:
            return split_bytes(raw, int(np.prod(shape)), name).reshape(shape)
        return np.frombuffer(raw, known.numpy).reshape(shape)
