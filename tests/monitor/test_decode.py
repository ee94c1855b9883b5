"""Exchanges to arrays: what the gateway answers, over each transport, is what comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sidecar.errors import InvalidRequestError, RequestError
from sidecar.gateway.messages import InferResponse, OutputTensor
from sidecar.gateway.streams import wrap
from sidecar.monitor.decode import NotComparableError, decode_inputs, decode_outputs, parse
from sidecar.monitor.exchange import Exchange
from sidecar.protocol import encode, json_codec
from sidecar.protocol.codec import parse_request
from sidecar.protocol.datatypes import BY_NAME, of_array
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Signature, TensorSpec
from tests.gateway.served import request
from tests.monitor.listening import exchange

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
OUTPUTS = {
    "y": X * 2,
    "n": np.array([1, -2, 3], dtype=np.int64),
    "t": np.array([b"a", b"", "ü".encode()], dtype=object),
    "b": np.array([True, False, True]),
}


def signature(inputs: Mapping[str, Any], outputs: Mapping[str, Any], batch: int = 8) -> Signature:
    def specs(arrays: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, of_array(a).name, (-1, *a.shape[1:])) for name, a in arrays.items()
        )

    return Signature(specs(inputs), specs(outputs), batch, "p", "b")


SIGNATURE = signature({"x": X}, OUTPUTS)


def response(outputs: Mapping[str, Any]) -> InferResponse:
    tensors = [OutputTensor(n, of_array(a).name, a.shape, a) for n, a in outputs.items()]
    return InferResponse("m", "1", "id", tensors)


def over_grpc(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Exchange:
    body = request("m", inputs).SerializeToString()
    return exchange(body, response=encode.encode_response(response(outputs)))


def over_stream(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Exchange:
    one = over_grpc(inputs, outputs)
    assert isinstance(one.response, bytes)
    one.transport, one.response = "stream", wrap(one.response)
    return one


def over_http(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, binary: bool = False
) -> Exchange:
    tensors, blobs = [], []
    for name, array in inputs.items():
        tensor = {"name": name, "datatype": of_array(array).name, "shape": list(array.shape)}
        if binary:
            blobs.append(bytes(encode.raw_bytes(array)))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = array.ravel().tolist()
        tensors.append(tensor)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": binary}}).encode()
    envelope = json_codec.Envelope("m", "", "r", len(head) if binary else None)
    body = b"".join((head, *blobs))
    asked, wants_binary = json_codec.decode_request(body, envelope)
    encoded = json_codec.encode_response(response(outputs), asked, binary=wants_binary)
    return exchange(
        body, transport="http", request_header_bytes=envelope.json_bytes,
        response=b"".join(encoded.parts), response_header_bytes=encoded.json_bytes,
    )  # fmt: skip


def over_http_binary(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Exchange:
    return over_http(inputs, outputs, binary=True)


def assert_same(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("over", [over_grpc, over_stream, over_http, over_http_binary])
def test_what_was_sent_and_answered(over: Any) -> None:
    one = over({"x": X}, OUTPUTS)
    assert_same(decode_inputs(one, SIGNATURE), {"x": X})
    assert_same(decode_outputs(one, SIGNATURE), OUTPUTS)
    one.request, one.response = memoryview(one.request), memoryview(one.response)
    parsed = parse(one)
    assert_same(decode_inputs(one, SIGNATURE, parsed=parsed), {"x": X})
    assert_same(decode_outputs(one, SIGNATURE, parsed=parsed), OUTPUTS)


@pytest.mark.parametrize("over", [over_grpc, over_stream, over_http_binary])
@pytest.mark.parametrize("datatype", BY_NAME.values(), ids=lambda d: d.name)
def test_every_datatype(over: Any, datatype: Any) -> None:
    values = np.random.default_rng(1).integers(0, 2, (2, 3))
    array = values.astype(datatype.numpy)
    if datatype.name == "BYTES":
        array = np.array([[b"a", b"\0\xff", b""]] * 2, dtype=object)
    one = over({"x": array}, {"y": array})
    only = signature({"x": array}, {"y": array})
    assert_same(decode_inputs(one, only), {"x": array})
    assert_same(decode_outputs(one, only), {"y": array})


@pytest.mark.parametrize("over", [over_grpc, over_stream, over_http, over_http_binary])
def test_large_and_empty_and_not_finite(over: Any) -> None:
    large = np.random.default_rng(2).normal(size=(300, 100)).astype(np.float32)
    large[0, :3] = np.nan, np.inf, -np.inf
    empty = np.empty((0, 4), np.float32)
    one = over({"x": empty}, {"y": large, "z": empty})
    wanted = signature({"x": empty}, {"y": large, "z": empty}, batch=1000)
    assert_same(decode_inputs(one, wanted), {"x": empty})
    assert_same(decode_outputs(one, wanted), {"y": large, "z": empty})


def test_a_raw_body() -> None:
    """HTTP's third form: nothing but the only input's bytes."""
    one = exchange(X.tobytes(), transport="http", request_header_bytes=0)
    assert_same(decode_inputs(one, SIGNATURE), {"x": X})


def test_only_outputs_that_were_asked_for() -> None:
    message = request("m", {"x": X})
    for name in ("b", "y"):
        message.outputs.add(name=name)
    answer = encode.encode_response(response({"b": OUTPUTS["b"], "y": OUTPUTS["y"]}))
    one = exchange(message.SerializeToString(), response=answer)
    assert_same(decode_outputs(one, SIGNATURE), {"b": OUTPUTS["b"], "y": OUTPUTS["y"]})


def test_typed_contents_of_another_server() -> None:
    """Its answers are mirrored as it sends them, by field instead of raw."""
    message = pb.ModelInferResponse(model_name="m")
    tensor = message.outputs.add(name="y", datatype="FP32", shape=[1, 4])
    tensor.contents.fp32_contents.extend([1, 2, 3, 4])
    element = pb.ModelStreamInferResponse(infer_response=message).SerializeToString()
    only = signature({"x": X}, {"y": X})
    body = request("m", {"x": X[:1]}).SerializeToString()
    for transport, answer in (("grpc", message.SerializeToString()), ("stream", element)):
        one = exchange(body, transport=transport, response=answer)
        expected = {"y": np.array([[1, 2, 3, 4]], np.float32)}
        assert_same(decode_outputs(one, only), expected)


def test_an_element_whose_answer_is_in_pieces() -> None:
    """A forwarded element gets its names appended, as a second occurrence of the message."""
    one = over_stream({"x": X}, {"y": X})
    rename = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(model_name="here"))
    assert isinstance(one.response, bytes)
    one.response += rename.SerializeToString()
    assert_same(decode_outputs(one, signature({"x": X}, {"y": X})), {"y": X})


# --- what cannot be compared ----------------------------------------------------------------------


def reason(one: Exchange) -> str:
    with pytest.raises(NotComparableError) as caught:
        decode_outputs(one, SIGNATURE)
    return caught.value.reason


def test_what_cannot_be_compared_says_why() -> None:
    failed = over_grpc({"x": X}, OUTPUTS)
    failed.response, failed.outcome = None, "ExecutionError"
    assert reason(failed) == "failed"
    labels = request("m", {"x": X})
    labels.outputs.add(name="y").parameters["classification"].int64_param = 2
    assert reason(exchange(labels.SerializeToString(), response=b"")) == "classification"
    region = request("m", {"x": X})
    parameters = region.outputs.add(name="y").parameters
    parameters["shared_memory_region"].string_param = "r"
    parameters["shared_memory_byte_size"].int64_param = 8
    assert reason(exchange(region.SerializeToString(), response=b"")) == "shared_memory"


def test_inputs_in_shared_memory() -> None:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 16
    with pytest.raises(NotComparableError) as caught:
        decode_inputs(exchange(message.SerializeToString()), SIGNATURE)
    assert caught.value.reason == "shared_memory"


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("over", [over_grpc, over_stream, over_http, over_http_binary])
@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"y": OUTPUTS["y"]}, "'n'"),
        ({**OUTPUTS, "y": OUTPUTS["y"].astype(np.float64)}, "FP64"),
    ],
)
def test_an_answer_that_does_not_fit_the_signature(over: Any, outputs: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="the answer is malformed") as caught:
        decode_outputs(over({"x": X}, outputs), SIGNATURE)
    assert text in str(caught.value)
    assert "upstream" not in str(caught.value)


def test_a_request_that_does_not_fit_the_signature() -> None:
    with pytest.raises(InvalidRequestError, match="takes at most 2"):
        decode_inputs(over_grpc({"x": X}, OUTPUTS), signature({"x": X}, OUTPUTS, batch=2))
    asked = request("m", {"x": X})
    asked.outputs.add(name="other")
    with pytest.raises(InvalidRequestError, match="'other'"):
        decode_outputs(exchange(asked.SerializeToString(), response=b""), SIGNATURE)


HTTP_ANSWERS = [
    b"", b"[]", b'{"outputs": 1}', b'{"outputs": [1]}', b"{}",
    b'{"outputs":[{"name":"y","datatype":"FP32","shape":[-1],"data":[]}]}',
    b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1]}]}',
    b'{"outputs":[{"name":"y","datatype":"FP32","shape":"2","data":[1]}]}',
    b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1]}]}',
    b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":["a"]}]}',
    b'{"outputs":[{"name":"y","datatype":7,"shape":[1],"data":[1]}]}',
    b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"parameters":'
    b'{"binary_data_size":4}}]}',
    b'{"outputs":[{"name":["y"],"datatype":"FP32","shape":[1],"data":[1]}]}',
]  # fmt: skip


@pytest.mark.parametrize("body", HTTP_ANSWERS)
def test_http_answers_that_are_none(body: bytes) -> None:
    """An answer may come from another server, or be damaged: an error of ours, never another."""
    one = over_http({"x": X}, {"y": X})
    one.response = body
    with pytest.raises(RequestError):
        decode_outputs(one, signature({"x": X}, {"y": X}))


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\x05ab", b"", b"\x12\x02\xff\xff"])
@pytest.mark.parametrize("transport", ["grpc", "stream"])
def test_grpc_answers_that_are_none(transport: str, body: bytes) -> None:
    one = over_grpc({"x": X}, {"y": X})
    one.transport, one.response = transport, body
    with pytest.raises(RequestError, match="the answer is malformed"):
        decode_outputs(one, signature({"x": X}, {"y": X}))


def test_the_gateways_own_parser_reads_the_request() -> None:
    one = over_grpc({"x": X}, OUTPUTS)
    assert parse(one).inputs == parse_request(bytes(one.request)).inputs
    one.request = b"\xff"
    with pytest.raises(InvalidRequestError, match="not a ModelInferRequest"):
        decode_inputs(one, SIGNATURE)
