"""The HTTP form of requests and responses: what is understood, and that nothing else gets out."""

from __future__ import annotations

import json
import math
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.errors import InvalidRequestError
from sidecar.gateway.messages import (
    InferRequest,
    InferResponse,
    OutputRequest,
    OutputTensor,
    RegionRef,
)
from sidecar.protocol import json_data
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.json_codec import ONLY_INPUT, Envelope, decode_request, encode_response


def decode(document: Any, binary: Any = b"", *, json_bytes: Any = None):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    if binary and json_bytes is None:
        json_bytes = len(body)
    return decode_request(body + binary, Envelope("m", "", "id-1", json_bytes=json_bytes))


def one(datatype: Any, data: Any, shape: Any = None, **extra: Any):
    shape = [len(data)] if shape is None and isinstance(data, list) else shape
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data} | extra]}


def array_of(datatype: Any, data: Any, shape: Any = None):
    request, _ = decode(one(datatype, data, shape))
    return request.inputs[0].array


def refused(document: Any, binary: Any = b"", **keywords: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        decode(document, binary, **keywords)
    return str(caught.value)


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False, 1, 0]),
        ("UINT8", [0, 255]),
        ("UINT16", [0, 65535]),
        ("UINT32", [0, 2**32 - 1]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT8", [-128, 127]),
        ("INT16", [-(2**15), 2**15 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP32", [0.5, -1, 3]),
        ("FP64", [1e300, -0.0, 7]),
    ],
)
def test_numbers_at_their_limits(datatype: Any, data: Any):
    array = array_of(datatype, data)
    assert array.dtype == BY_NAME[datatype].numpy
    assert array.tolist() == data


def test_strings_are_bytes():
    assert array_of("BYTES", ["", "a", "é\u0000\U0001f600"]).tolist() == [
        b"", b"a", "é\u0000\U0001f600".encode(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "nested", [[[1, 2, 3], [4, 5, 6]], [1, 2, 3, 4, 5, 6], [[[1, 2, 3, 4, 5, 6]]]]
)
def test_flat_and_nested_lists_are_row_major(nested: Any):
    assert array_of("INT32", nested, [2, 3]).tolist() == [1, 2, 3, 4, 5, 6]


def test_nan_and_infinities_are_data():
    body = json.dumps(one("FP32", [math.nan, math.inf, -math.inf])).encode()
    assert b"NaN" in body
    array = decode(body)[0].inputs[0].array
    assert np.isnan(array[0])
    assert array[1:].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("data", [[], [[]], [[], []]])
def test_empty_data(data: Any):
    assert array_of("FP32", data, [0]).shape == (0,)


def test_large_data_is_converted_in_slices():
    size = 3 * json_data.SLICE + 7
    values = list(range(size))
    assert (array_of("INT32", values) == np.arange(size)).all()
    strings = [str(value) for value in values]
    assert array_of("BYTES", strings).tolist() == [text.encode() for text in strings]


@pytest.mark.parametrize(
    ("datatype", "data", "named"),
    [
        ("UINT8", [1, 256], "256"),
        ("UINT8", [-1], "-1"),
        ("INT8", [-129], "-129"),
        ("UINT64", [2**64], str(2**64)),
        ("INT64", [-(2**63) - 1], str(-(2**63) - 1)),
        ("INT32", [1.5], "1.5"),
        ("INT32", [1.0], "1.0"),
        ("INT32", [True], "True"),
        ("INT32", ["1"], "'1'"),
        ("INT32", [None], "null"),
        ("INT32", [{}], "object"),
        ("FP32", ["1"], "'1'"),
        ("FP32", [True], "True"),
        ("FP32", [1e39], "1e+39"),
        ("FP32", [10**400], "integer of more than 60 digits"),
        ("FP64", [10**400], "integer of more than 60 digits"),
        ("FP64", [None], "null"),
        ("BOOL", [2], "2"),
        ("BOOL", [0.0], "0.0"),
        ("BYTES", [1], "1"),
        ("BYTES", [None], "null"),
        ("BYTES", ["\ud800"], "surrogate"),
        ("INT32", [1, [2]], "list"),
        ("INT32", [[1], 2], "unevenly"),
        ("INT32", [[1, 2], [3]], "unevenly"),
        ("INT32", 5, "must be a list"),
        ("INT32", {"a": 1}, "must be a list"),
        ("INT32", "12", "must be a list"),
    ],
)
def test_wrong_values_are_named(datatype: Any, data: Any, named: Any):
    message = refused(one(datatype, data, [1]))
    assert named in message
    assert "'x'" in message


def test_infinity_that_was_sent_is_not_an_overflow():
    values = array_of("FP32", [1e38, math.inf])
    assert values[1] == math.inf


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_binary_only(datatype: Any):
    assert "binary" in refused(one(datatype, [1.0]))
    request, _ = decode(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": [1],
                     "parameters": {"binary_data_size": 2}}]}, b"\x00\x3c",
    )  # fmt: skip
    assert bytes(request.inputs[0].raw) == b"\x00\x3c"


# --- documents ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "broken"),
        (b"{", "broken"),
        (b"nul", "broken"),
        (b"[]", "must be an object"),
        (b"7", "must be an object"),
        (b"\xff\xfe{", "UTF-8"),
        (b"{}", "no 'inputs'"),
        (b'{"inputs": []}', "no 'inputs'"),
        (b'{"inputs": {}}', "must be a list"),
        (b'{"inputs": [1]}', "inputs[0] must be an object"),
        (b'{"inputs": [{"shape": []}]}', "'name'"),
        (b'{"inputs": [{"name": ""}]}', "'name'"),
        (b'{"inputs": [{"name": "x", "datatype": "FP8"}]}', "'FP8' is unknown"),
        (b'{"inputs": [{"name": "x", "datatype": ["FP32"]}]}', "is unknown"),
        (b'{"inputs": [], "inputs": []}', "'inputs' is given twice"),
        (b'{"id": 7, "inputs": [1]}', "'id' must be a string"),
        (b'{"id": "\\ud800", "inputs": [1]}', "surrogate"),
        (b'{"parameters": [], "inputs": [1]}', "'parameters' must be an object"),
        (b'{"parameters": {"a": null}, "inputs": [1]}', "'a'"),
        (b'{"parameters": {"a": {}}, "inputs": [1]}', "'a'"),
        (b'{"parameters": {"a": 18446744073709551616}, "inputs": [1]}', "64 bits"),
        (b'{"parameters": {"binary_data_output": 1}, "inputs": [1]}', "binary_data_output"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_broken_documents(body: Any, part: Any):
    assert part in refused(body)


def test_very_deep_data_within_the_parsers_depth():
    deep = "[" * 200 + "1" + "]" * 200
    text = json.dumps(one("INT32", [1])).replace("[1]}", "[1]}", 1)
    body = text.replace('"data": [1]', f'"data": {deep}').encode()
    assert "nested more than" in refused(body)


def test_many_brackets_are_refused_before_they_are_objects():
    body = b"[" + b"[]," * (json_data.BRACKETS_MAX + 1)
    assert "brackets" in refused(body)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        (None, "'shape'"),
        ("3", "'shape'"),
        ([-1], "-1"),
        ([1.0], "1.0"),
        ([True], "True"),
        ([2**63], "9223372036854775808"),
        ([10**300], "60 digits"),
        ([[1]], "list"),
        ([1] * 33, "32"),
    ],
)
def test_wrong_shapes(shape: Any, part: Any):
    document = one("INT32", [1], shape)
    document["inputs"][0]["shape"] = shape
    assert part in refused(document)


def test_an_enormous_shape_is_passed_on_without_allocating():
    request, _ = decode(one("INT32", [1], [2**62, 2**62]))
    assert request.inputs[0].shape == (2**62, 2**62)


def test_what_a_request_carries():
    document = one("INT32", [1]) | {
        "id": "my-id",
        "model_name": "ignored",
        "parameters": {"timeout": 5, "sequence_id": "s", "p": 1.5, "b": True,
                       "binary_data_output": True},
        "outputs": [
            {"name": "y"},
            {"name": "z", "parameters": {"binary_data": False, "classification": 3}},
            {"name": "w", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8,
                                         "shared_memory_offset": 4, "binary_data": False}},
        ],
    }  # fmt: skip
    body = json.dumps(document).encode()
    envelope = Envelope("m", "2", "id-1", traceparent="tp", received_ns=42)
    request, binary = decode_request(body, envelope)
    assert binary is True
    assert (request.model_name, request.model_version, request.id) == ("m", "2", "my-id")
    assert (request.request_id, request.traceparent, request.received_ns) == ("id-1", "tp", 42)
    assert request.nbytes == len(body)
    assert request.parameters == {"timeout": 5, "sequence_id": "s", "p": 1.5, "b": True}
    assert request.outputs == [
        OutputRequest("y"),
        OutputRequest("z", classification=3, binary=False),
        OutputRequest("w", region=RegionRef("r", 8, 4), binary=False),
    ]


def test_null_counts_as_absent():
    document = one("INT32", [1]) | {"id": None, "parameters": None, "outputs": None}
    document["inputs"][0]["parameters"] = None
    request, binary = decode(document)
    assert (request.id, request.outputs, request.parameters, binary) == ("", [], {}, False)


REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 8}


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"shared_memory_region": "r"}, "byte_size"),
        ({"shared_memory_byte_size": 1}, "without shared_memory_region"),
        ({"shared_memory_region": "", "shared_memory_byte_size": 1}, "region"),
        ({"shared_memory_region": 3, "shared_memory_byte_size": 1}, "region"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": -1}, "-1"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 1.0}, "1.0"),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 1, "binary_data": True},
            "exclude",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 1, "classification": 1},
            "exclude",
        ),
        ({"classification": -1}, "classification"),
        ({"classification": True}, "classification"),
        ({"binary_data": "yes"}, "binary_data"),
    ],
)
def test_wrong_output_parameters(parameters: Any, part: Any):
    document = one("INT32", [1]) | {"outputs": [{"name": "y", "parameters": parameters}]}
    assert part in refused(document)


def test_shared_memory_input():
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": REGION}
    request, _ = decode({"inputs": [tensor]})
    assert request.inputs[0].region == RegionRef("r", 8, 0)
    assert request.inputs[0].raw is None
    assert request.inputs[0].array is None
    assert "more" in refused({"inputs": [tensor | {"data": [1.0]}]})


# --- binary -------------------------------------------------------------------------------------


def binary_input(name: Any, size: Any, **extra: Any):
    return {"name": name, "datatype": "UINT8", "shape": [3],
            "parameters": {"binary_data_size": size} | extra}  # fmt: skip


def test_binary_inputs_follow_in_order_and_are_not_copied():
    document = {"inputs": [
        binary_input("a", 3),
        {"name": "b", "datatype": "INT32", "shape": [1], "data": [5]},
        binary_input("c", 0),
        binary_input("d", 2),
    ]}  # fmt: skip
    head = json.dumps(document).encode()
    body = head + b"abcde"
    request, binary = decode_request(body, Envelope("m", "", "i", json_bytes=len(head)))
    assert binary is False
    assert [None if t.raw is None else bytes(t.raw) for t in request.inputs] == [
        b"abc", None, b"", b"de",
    ]  # fmt: skip
    assert request.inputs[0].raw.obj is body


@pytest.mark.parametrize(
    ("size", "binary", "part"),
    [
        (3, b"ab", "2 bytes are left"),
        (3, b"abcd", "1 bytes that no input"),
        (2**62, b"abc", "3 bytes are left"),
        (-1, b"abc", "-1"),
        (True, b"abc", "True"),
        (3.0, b"abc", "3.0"),
        ("3", b"abc", "'3'"),
    ],
)
def test_lying_binary_sizes(size: Any, binary: Any, part: Any):
    assert part in refused({"inputs": [binary_input("x", size)]}, binary)


def test_header_lengths():
    document = {"inputs": [binary_input("x", 3)]}
    body = json.dumps(document).encode()
    assert "Inference-Header-Content-Length" in refused(document)
    assert "is 9999" in refused(document, b"abc", json_bytes=9999)
    assert "broken" in refused(document, b"abc", json_bytes=len(body) - 1)
    assert "broken" in refused(document, b"abc", json_bytes=len(body) + 1)


def test_neither_data_nor_binary():
    assert "none is given" in refused({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]})
    assert "it has more" in refused(one("UINT8", [1], parameters={"binary_data_size": 3}), b"abc")


def test_raw_body_is_the_only_input():
    request, binary = decode(b"\x00\x01", json_bytes=0)
    assert binary is True
    [tensor] = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == (ONLY_INPUT, "", ())
    assert bytes(tensor.raw) == b"\x00\x01"


# --- responses ----------------------------------------------------------------------------------


def respond(*outputs: Any, binary: Any = False, asked: Any = (), **extra: Any):
    request = InferRequest("m", "", "", "", [], outputs=list(asked))
    response = InferResponse("m", "2", extra.pop("id", ""), list(outputs), extra)
    encoded = encode_response(response, request, binary=binary)
    body = b"".join(encoded.parts)
    head = body if encoded.json_bytes is None else body[: encoded.json_bytes]
    return json.loads(head), body[len(head) :]


def output(name: Any, datatype: Any, values: Any, shape: Any = None):
    array = np.array(values, BY_NAME[datatype].numpy)
    return OutputTensor(name, datatype, array.shape if shape is None else shape, array)


def test_json_response():
    document, rest = respond(
        output("a", "FP32", [[0.5, 1.5]]),
        output("b", "BYTES", [b"x", "é".encode()]),
        output("c", "BOOL", [True, False]),
        output("d", "UINT64", 2**64 - 1),
        id="my-id",
        fallback=True,
    )
    assert rest == b""
    assert document == {
        "model_name": "m", "model_version": "2", "id": "my-id", "parameters": {"fallback": True},
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.5]},
            {"name": "b", "datatype": "BYTES", "shape": [2], "data": ["x", "é"]},
            {"name": "c", "datatype": "BOOL", "shape": [2], "data": [True, False]},
            {"name": "d", "datatype": "UINT64", "shape": [], "data": [2**64 - 1]},
        ],
    }  # fmt: skip


def test_binary_and_json_outputs_mixed():
    document, rest = respond(
        output("a", "INT16", [1, -1]),
        output("b", "INT8", [7]),
        output("c", "BYTES", [b"xy", b""]),
        binary=True,
        asked=[OutputRequest("a"), OutputRequest("b", binary=False), OutputRequest("c")],
    )
    assert [o.get("parameters") for o in document["outputs"]] == [
        {"binary_data_size": 4}, None, {"binary_data_size": 10},
    ]  # fmt: skip
    assert document["outputs"][1]["data"] == [7]
    assert rest == b"\x01\x00\xff\xff" + b"\x02\x00\x00\x00xy\x00\x00\x00\x00"


def test_one_output_in_binary_although_the_default_is_json():
    document, rest = respond(output("a", "BF16", [1.0]), asked=[OutputRequest("a", binary=True)])
    assert rest == np.array([1.0], ml_dtypes.bfloat16).tobytes()
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 2}


def test_big_endian_and_strided_arrays_are_written_little_endian_in_order():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    document, rest = respond(OutputTensor("a", "INT32", (3, 2), array), binary=True)
    assert rest == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()
    document, _ = respond(OutputTensor("a", "INT32", (3, 2), array))
    assert document["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


def test_nan_in_answers_is_written_as_python_does():
    request = InferRequest("m", "", "", "", [])
    response = InferResponse("m", "1", "", [output("a", "FP32", [math.nan, math.inf, -math.inf])])
    [body] = encode_response(response, request, binary=False).parts
    assert b'"data":[NaN,Infinity,-Infinity]' in body


@pytest.mark.parametrize(
    "tensor", [output("a", "FP16", [1]), output("a", "BF16", [1]), output("a", "BYTES", [b"\xff"])]
)
def test_what_json_cannot_carry(tensor: Any):
    with pytest.raises(InvalidRequestError, match="ask for binary_data"):
        respond(tensor)


def test_output_in_shared_memory():
    tensor = OutputTensor("a", "FP32", (2,), None, region=RegionRef("r", 8, 16))
    document, rest = respond(tensor, binary=True)
    assert rest == b""
    assert document["outputs"] == [{"name": "a", "datatype": "FP32", "shape": [2]}]


def test_large_answers_are_written_in_slices():
    size = 2 * json_data.SLICE + 1
    document, _ = respond(output("a", "INT32", np.arange(size)))
    assert document["outputs"][0]["data"] == list(range(size))


@given(st.lists(st.floats(width=32), max_size=20))
def test_json_round_trip_keeps_every_float32(values: Any):
    document, _ = respond(output("x", "FP32", values))
    array = array_of("FP32", document["outputs"][0]["data"], [len(values)])
    assert array.tobytes() == np.array(values, "<f4").tobytes() or any(map(math.isnan, values))
    np.testing.assert_array_equal(array, np.array(values, "<f4"))


# --- whatever comes -----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
PARAMETERS = st.dictionaries(
    st.sampled_from([
        "binary_data_size", "shared_memory_region", "shared_memory_byte_size",
        "shared_memory_offset", "binary_data", "classification", "binary_data_output", "timeout",
    ]) | st.text(max_size=3),
    JSON | st.integers(-2, 12),
    max_size=3,
)  # fmt: skip
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "y"]) | JSON,
        "datatype": st.sampled_from(list(BY_NAME)) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data": st.lists(st.integers(-300, 300), max_size=4)
        | st.lists(st.lists(st.floats() | st.text(max_size=2), max_size=2), max_size=2)
        | JSON,
        "parameters": PARAMETERS | JSON,
    },
)
DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(TENSOR, max_size=3) | JSON,
        "outputs": st.lists(TENSOR, max_size=2) | JSON,
        "id": st.text(max_size=3) | JSON,
        "parameters": PARAMETERS | JSON,
    },
)


def decode_or_refuse(body: Any, json_bytes: Any):
    """Decode; what is understood must also be encodable as text (names, ids, parameters)."""
    refusal = None
    try:
        request, _ = decode_request(body, Envelope("m", "", "i", json_bytes=json_bytes))
    except InvalidRequestError as error:
        refusal = str(error)
    if refusal is not None:
        assert len(refusal.encode()) < 1000
        return
    request.id.encode()
    for tensor in request.inputs:
        tensor.name.encode()
        given_forms = [tensor.raw is not None, tensor.array is not None, tensor.region is not None]
        assert sum(given_forms) == 1
        if tensor.array is not None:
            assert tensor.array.dtype == BY_NAME[tensor.datatype].numpy
            assert tensor.array.ndim == 1


@settings(max_examples=400, deadline=None)
@given(DOCUMENT | JSON, st.binary(max_size=12), st.none() | st.integers(-5, 5))
def test_any_document_decodes_or_is_refused(document: Any, binary: Any, lie: Any):
    head = json.dumps(document).encode()
    json_bytes = None if lie is None else max(0, len(head) + lie)
    decode_or_refuse(head + binary, json_bytes)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
@example(b"\xef\xbb\xbf{}", None)
@example(b'{"inputs":[{"name":"x","datatype":"INT8","shape":[1],"data":[1e400]}]}', None)
@example(b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[-0]}]}', None)
def test_any_bytes_decode_or_are_refused(body: Any, json_bytes: Any):
    decode_or_refuse(body, json_bytes)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_mutation_of_a_good_request(data: Any):
    document = one("FP32", [1.5, 2.5]) | {"id": "a", "outputs": [{"name": "y"}]}
    document["inputs"].append(binary_input("z", 3))
    head = json.dumps(document).encode()
    body = bytearray(head + b"abc")
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        body[where : where + 1] = data.draw(st.binary(max_size=3))
    decode_or_refuse(bytes(body), data.draw(st.sampled_from([len(head), None, 0, 3])))


# --- politeness ---------------------------------------------------------------------------------


def test_other_threads_run_while_a_large_document_is_parsed() -> None:
    """Python's scanner would hold the interpreter's lock for the whole document."""
    values = np.random.default_rng(0).random(400_000).tolist()
    body = json.dumps(values).encode()
    assert len(body) > 20 * json_data.POLITE_BYTES
    ticks = 0
    done = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not done.wait(0.0005):
            ticks += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        assert json_data.parse_json(body, "the text") == values
    finally:
        done.set()
        thread.join()
    # 1 or 2 with the lock held from start to end; two or three dozen as it is.
    assert ticks >= 8
