"""The gRPC codec: what comes in as bytes is what the arrays hold, to the bit, or it is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sidecar.errors import InvalidRequestError, NotFoundError, UnsupportedError
from sidecar.gateway.messages import InferRequest, InferResponse, OutputTensor, RegionRef
from sidecar.protocol import arrays, codec, encode
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import TensorSpec
from tests.support.models import assert_same, example

NUMERIC = [name for name, datatype in BY_NAME.items() if datatype.item_bytes]
TYPED = [name for name, datatype in BY_NAME.items() if datatype.contents_field]


def message(**names: str) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name="m", **names)


def one_input(
    datatype: str = "FP32", shape: Any = (2, 3), raw: bytes | None = None, name: str = "x"
) -> pb.ModelInferRequest:
    request = message()
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def typed_input(datatype: str, values: Any, shape: Any = None, field: str = "") -> Any:
    request = one_input(datatype, [len(values)] if shape is None else shape)
    field = field or str(BY_NAME[datatype].contents_field)
    getattr(request.inputs[0].contents, field).extend(values)
    request.inputs[0].contents.SetInParent()
    return request


def spec(
    datatype: str = "FP32", shape: Any = (-1, 3), name: str = "x", *, optional: bool = False
) -> TensorSpec:
    return TensorSpec(name, datatype, tuple(shape), optional)


def decode(
    request: pb.ModelInferRequest, *specs: TensorSpec, batch: int = 0, read: Any = None
) -> dict[str, np.ndarray]:
    parsed = codec.parse_request(request.SerializeToString())
    return arrays.materialize(parsed, {s.name: s for s in specs or [spec()]}, batch, read)


def refused(*args: Any, **kwargs: Any) -> str:
    """The text with which a request is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        decode(*args, **kwargs)
    return str(caught.value)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 0, 3), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("datatype", BY_NAME)
def test_raw_data_round_trips(datatype: str, shape: tuple[int, ...]) -> None:
    """Every datatype and rank: in, out by ``encode_response``, and as protobuf reads it."""
    sent = example(datatype, shape)
    raw = bytes(encode.raw_bytes(sent))
    got = decode(one_input(datatype, shape, raw), spec(datatype, [-1] * len(shape)))["x"]
    assert_same(got, sent)
    assert got.flags.c_contiguous
    assert got.flags.aligned
    answer = InferResponse("m", "1", "id", [OutputTensor("x", datatype, shape, got)])
    back = pb.ModelInferResponse.FromString(encode.encode_response(answer))
    assert list(back.raw_output_contents) == [raw]
    assert tuple(back.outputs[0].shape) == shape


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_data_round_trips(datatype: str) -> None:
    sent = example(datatype, (2, 5))
    got = decode(typed_input(datatype, sent.ravel().tolist(), (2, 5)), spec(datatype, (-1, 5)))
    assert_same(got["x"], sent)


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_scalars_and_empty_tensors(datatype: str) -> None:
    one = example(datatype, (1,))
    scalar = decode(typed_input(datatype, one.tolist(), ()), spec(datatype, ()))["x"]
    assert_same(scalar, one.reshape(()))
    empty = decode(typed_input(datatype, [], (0, 3)), spec(datatype))["x"]
    assert_same(empty, example(datatype, (0, 3)))


def test_nan_payloads_survive() -> None:
    """Also signalling ones, which a conversion to double and back would make quiet."""
    wide = np.array([0x7F800001, 0x7FC12345, 0xFFA00000, 0x80000000], "<u4")
    got = decode(one_input("FP32", [4], wide.tobytes()), spec(shape=[-1]))["x"]
    assert got.view("<u4").tolist() == wide.tolist()
    contents = pb.InferTensorContents.FromString(b"\x32\x10" + wide.tobytes())  # field 6, packed
    request = one_input("FP32", [4])
    request.inputs[0].contents.CopyFrom(contents)
    assert decode(request, spec(shape=[-1]))["x"].view("<u4").tolist() == wide.tolist()
    double = np.array([0x7FF0000000000001, 0xFFF8000000000002], "<u8")
    request = one_input("FP64", [2])
    request.inputs[0].contents.MergeFromString(b"\x3a\x10" + double.tobytes())  # field 7
    assert decode(request, spec("FP64", [-1]))["x"].view("<u8").tolist() == double.tolist()
    halves = np.array([0x7F81, 0xFF81, 0x7FC1], "<u2")
    got = decode(one_input("BF16", [3], halves.tobytes()), spec("BF16", [-1]))["x"]
    assert got.dtype == ml_dtypes.bfloat16
    assert got.view("<u2").tolist() == halves.tolist()


def test_raw_data_is_not_copied_and_not_writable() -> None:
    """The view is the point of the codec; runtimes are promised that it is read-only."""
    body = one_input("FP32", [2, 3], bytes(24)).SerializeToString()
    request = codec.parse_request(body)
    got = arrays.materialize(request, {"x": spec()}, 0)["x"]
    assert np.shares_memory(got, np.frombuffer(request.inputs[0].raw, np.uint8))
    assert not got.flags.writeable


def test_bools_that_are_no_bools() -> None:
    """Masks come as 255 as well; compiled code may take only 0 and 1 for a bool."""
    got = decode(one_input("BOOL", [4], b"\0\1\2\xff"), spec("BOOL", [-1]))["x"]
    assert got.dtype == np.bool_
    assert got.view(np.uint8).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("UINT8", 256), ("UINT16", 65536), ("INT8", 128), ("INT8", -129), ("INT16", 32768)],
)
def test_narrow_integers_out_of_range(datatype: str, value: int) -> None:
    text = refused(typed_input(datatype, [0, value, 1]), spec(datatype, [-1]))
    assert "'x'" in text
    assert f"outside {datatype}" in text


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_have_no_typed_form(datatype: str) -> None:
    request = typed_input(datatype, [1.0], [1], "fp32_contents")
    assert "send it raw" in refused(request, spec(datatype, [-1]))


def test_typed_data_in_the_wrong_field() -> None:
    request = typed_input("FP32", [1], [1], "int_contents")
    assert "fp32_contents, not int_contents" in refused(request, spec(shape=[-1]))


@pytest.mark.parametrize("size", [0, 5, 7])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "INT8"])
def test_typed_data_of_the_wrong_size(datatype: str, size: int) -> None:
    values = [b"a" if datatype == "BYTES" else 1] * size
    text = refused(typed_input(datatype, values, (2, 3)), spec(datatype))
    assert f"has 6 elements, the request gives {size}" in text


# --- BYTES ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "count", "part"),
    [
        (b"", 1, "cannot hold"),
        (b"\0\0\0", 1, "cannot hold"),
        (b"\5\0\0\0abcd", 1, "claims 5 bytes, 4 are left"),
        (b"\xff\xff\xff\xff", 1, "claims 4294967295 bytes, 0 are left"),
        (b"\1\0\0\0a\0\0", 2, "cannot hold"),
        (b"\4\0\0\0\0\0\0\0", 2, "element 1"),
        (b"\1\0\0\0ab", 1, "1 bytes are left over"),
        (b"\1\0\0\0a", 0, "5 bytes are left over"),
        (b"\0\0\0\0", 2**62, "cannot hold"),
    ],
)
def test_bytes_with_lying_lengths(raw: bytes, count: int, part: str) -> None:
    text = refused(one_input("BYTES", [count], raw), spec("BYTES", [-1]))
    assert part in text
    assert "'x'" in text


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "declared"),
    [
        ([-1, 3], [-1, 3]),  # says what the model declares, and is no shape
        ([-1, -1], [-1, -1]),  # numpy would work one out
        ([-1, 0], [-1, -1]),
        ([-(2**63), 3], [-1, 3]),
        ([2, -3], [-1, -1]),
        ([2**62, 3], [-1, 3]),
        ([2**62, 2**62], [-1, -1]),
        ([0, 2**62], [-1, -1]),  # empty, yet no array can have it
        ([0, 2**40], [-1, -1]),  # empty, and an output made of it would be 4 TiB
        ([2, 4], [-1, 3]),
        ([2, 3], [1, 3]),
        ([6], [-1, 3]),
        ([1, 2, 3], [-1, 3]),
        ([], [-1, 3]),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
@pytest.mark.parametrize("raw", [b"", bytes(4), bytes(24)], ids=len)
def test_shapes_that_cannot_be(datatype: str, shape: Any, declared: Any, raw: bytes) -> None:
    text = refused(one_input(datatype, shape, raw), spec(datatype, declared))
    assert "'x'" in text


@pytest.mark.parametrize("shape", [[-1, -1], [0, 2**62], [-1, 0]])
def test_typed_data_with_shapes_that_cannot_be(shape: list[int]) -> None:
    values = [1.0] if 0 not in shape else []
    assert "'x'" in refused(typed_input("FP32", values, shape), spec(shape=[-1, -1]))


def test_a_shape_of_millions_of_dimensions_is_not_repeated() -> None:
    text = refused(one_input("FP32", [1] * 3_000_000, bytes(4)), spec())
    assert "2 dimensions" in text
    assert len(text) < 500


def test_empty_and_scalar_tensors_may_come_without_data() -> None:
    assert decode(one_input("FP32", [0, 3]))["x"].shape == (0, 3)
    assert "takes 4 bytes, the request gives 0" in refused(one_input("FP32", []), spec(shape=[]))


@pytest.mark.parametrize("nbytes", [0, 23, 25, 48])
def test_wrong_byte_counts(nbytes: int) -> None:
    text = refused(one_input("FP32", [2, 3], bytes(nbytes)))
    assert f"takes 24 bytes, the request gives {nbytes}" in text


# --- inputs ---------------------------------------------------------------------------------------


def two_inputs(*names: str, raws: int = 2) -> pb.ModelInferRequest:
    request = message()
    for name in names:
        request.inputs.add(name=name, datatype="FP32", shape=[1, 3])
    request.raw_input_contents.extend([bytes(12)] * raws)
    return request


AB = (spec(name="a"), spec(name="b"))


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (two_inputs("a", "b", raws=3), "3 entries, but only 2 inputs"),
        (two_inputs("a", "b", raws=1), "none is left for 'b'"),
        (two_inputs("a", "b", raws=0), "input 'a' (FP32 [1, 3]) takes 12 bytes"),
        (two_inputs("a", raws=1), "needs input 'b'"),
        (two_inputs(raws=0), "needs input 'a', 'b'"),
        (two_inputs("a", "c"), "unexpected input 'c'; model 'm' takes 'a', 'b'"),
        (two_inputs("a", "a"), "input 'a' is given twice"),
        (two_inputs("a", ""), "inputs[1] has no name"),
        (one_input("FP64", [1, 3], bytes(24), "a"), "input 'a' is FP32, not FP64"),
        (one_input("FLOAT", [1, 3], bytes(12), "a"), "unknown datatype 'FLOAT'; known are: BOOL"),
        (one_input("", [1, 3], bytes(12), "a"), "unknown datatype ''"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_do_not_fit(request_: pb.ModelInferRequest, part: str) -> None:
    assert part in refused(request_, *AB)


def test_raw_and_typed_mixed() -> None:
    request = two_inputs("a", "b", raws=1)
    request.inputs[1].contents.fp32_contents.extend([1, 2, 3])
    assert "input 'b' has contents while raw_input_contents is used" in refused(request, *AB)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([4, 5, 6])
    assert decode(request, *AB)["a"].tolist() == [[4, 5, 6]]


def test_optional_inputs_may_be_left_out() -> None:
    specs = (spec(name="a"), spec(name="b", optional=True))
    assert set(decode(two_inputs("a", raws=1), *specs)) == {"a"}
    assert set(decode(two_inputs("b", "a"), *specs)) == {"a", "b"}
    assert "needs input 'a'" in refused(two_inputs("b", raws=1), *specs)
    assert decode(message(), spec(optional=True), batch=4) == {}


def test_batches() -> None:
    request = one_input("FP32", [5, 3], bytes(60))
    assert decode(request, batch=5)["x"].shape == (5, 3)
    assert "has 5 rows; this model takes at most 4" in refused(request, batch=4)
    uneven = two_inputs("a", "b", raws=0)
    uneven.inputs[1].shape[0] = 2
    uneven.raw_input_contents.extend([bytes(12), bytes(24)])
    assert "'b' has 2 rows, input 'a' has 1" in refused(uneven, *AB, batch=8)


def test_the_raw_body_of_http_cannot_be_had_over_grpc() -> None:
    """A nameless input would be taken as the model declares it, whatever it says of itself."""
    assert "inputs[0] has no name" in refused(one_input("INT8", [1], bytes(12), ""))


# --- shared memory --------------------------------------------------------------------------------


def in_region(**parameters: Any) -> pb.ModelInferRequest:
    request = one_input("FP32", [2, 3])
    for name, value in parameters.items():
        encode.set_parameter(request.inputs[0].parameters[name], value)
    return request


def test_inputs_in_shared_memory() -> None:
    asked: list[RegionRef] = []

    def read(ref: RegionRef) -> np.ndarray:
        asked.append(ref)
        return np.arange(6, dtype=np.float32).view(np.uint8)

    request = in_region(
        shared_memory_region="r", shared_memory_byte_size=24, shared_memory_offset=8
    )
    assert decode(request, read=read)["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert asked == [RegionRef("r", 24, 8)]
    with pytest.raises(UnsupportedError, match="not offered"):
        decode(request)
    request.inputs[0].shape[0] = 3
    assert "takes 36 bytes, the request gives 24" in refused(request, read=read)

    def unknown(ref: RegionRef) -> np.ndarray:
        raise NotFoundError(ref.region)

    with pytest.raises(NotFoundError):
        decode(in_region(shared_memory_region="r", shared_memory_byte_size=24), read=unknown)


def test_raw_entries_are_counted_over_inputs_that_are_not_in_shared_memory() -> None:
    request = in_region(shared_memory_region="r", shared_memory_byte_size=24)
    request.inputs.add(name="b", datatype="FP32", shape=[1, 3])
    request.raw_input_contents.append(np.array([7, 8, 9], "<f4").tobytes())
    region = np.zeros(24, np.uint8)
    got = decode(request, spec(), spec(name="b"), read=lambda _: region)
    assert got["b"].tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"shared_memory_region": 3, "shared_memory_byte_size": 24}, "region must be"),
        ({"shared_memory_region": "r"}, "shared_memory_byte_size must be"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": -1}, "not -1"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 2.5}, "not 2.5"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": True}, "not True"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": "24"}, "not '24'"),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": 1, "shared_memory_offset": -8},
            "shared_memory_offset must be",
        ),
        ({"shared_memory_byte_size": 24}, "without shared_memory_region"),
        ({"shared_memory_offset": 24}, "without shared_memory_region"),
    ],
)
def test_references_to_shared_memory_that_cannot_be(parameters: Any, part: str) -> None:
    text = refused(in_region(**parameters))
    assert part in text
    assert "'x'" in text


def test_contents_and_a_region_at_once() -> None:
    request = in_region(shared_memory_region="r", shared_memory_byte_size=24)
    request.inputs[0].contents.fp32_contents.extend([0.0] * 6)
    assert "both contents and a shared-memory region" in refused(request)


# --- parameters and outputs asked for -------------------------------------------------------------


def with_parameters(**parameters: Any) -> InferRequest:
    request = one_input("FP32", [1, 3], bytes(12))
    for name, value in parameters.items():
        encode.set_parameter(request.parameters[name], value)
    return codec.parse_request(request.SerializeToString())


def test_parameters_are_read() -> None:
    given = {"timeout": 5, "sequence_id": "s", "sequence_start": True, "own": 2.5, "big": -(2**63)}
    assert with_parameters(**given).parameters == given
    assert with_parameters(sequence_id=7, triton_enable_empty_final_response=True).parameters
    request = one_input("FP32", [1, 3], bytes(12))
    request.parameters["priority"].uint64_param = 2**64 - 1
    assert codec.parse_request(request.SerializeToString()).parameters == {"priority": 2**64 - 1}


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        ({"triton_nonsense": 1}, "'triton_nonsense' is unknown"),
        ({"timeout": "5"}, "'timeout' is a whole number of microseconds (0: none), not '5'"),
        ({"timeout": -1}, "(0: none), not -1"),
        ({"timeout": 0.5}, "'timeout' is a whole"),
        ({"timeout": True}, "'timeout' is a whole"),
        ({"sequence_id": 1.5}, "'sequence_id' is an integer or a string"),
        ({"sequence_id": False}, "'sequence_id' is an integer or a string"),
        ({"sequence_start": 1}, "'sequence_start' is a bool"),
        ({"sequence_end": "true"}, "'sequence_end' is a bool"),
    ],
)
def test_parameters_that_cannot_be_meant(parameters: Any, part: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        with_parameters(**parameters)
    assert part in str(caught.value)


def test_parameters_without_a_value_and_too_many() -> None:
    request = one_input("FP32", [1, 3], bytes(12))
    request.parameters["odd"].SetInParent()
    assert "parameter 'odd' has no value" in refused(request)
    request.parameters.clear()
    for number in range(2000):
        request.inputs[0].parameters[f"p{number}"].bool_param = True
    assert "2000 parameters" in refused(request)


def test_outputs_asked_for_keep_their_order() -> None:
    request = one_input("FP32", [1, 3], bytes(12))
    for name in ("b", "a", "c"):
        request.outputs.add(name=name)
    request.outputs[1].parameters["classification"].int64_param = 3
    region = request.outputs[2].parameters
    region["shared_memory_region"].string_param = "r"
    region["shared_memory_byte_size"].int64_param = 8
    outputs = codec.parse_request(request.SerializeToString()).outputs
    assert [output.name for output in outputs] == ["b", "a", "c"]
    assert [output.classification for output in outputs] == [0, 3, 0]
    assert [output.region for output in outputs] == [None, None, RegionRef("r", 8, 0)]


@pytest.mark.parametrize("count", [-1, 1.0, True, "3"])
def test_classification_that_cannot_be_meant(count: Any) -> None:
    request = one_input("FP32", [1, 3], bytes(12))
    output = request.outputs.add(name="y")
    encode.set_parameter(output.parameters["classification"], count)
    assert "output 'y': classification must be" in refused(request)


def test_classification_cannot_go_to_shared_memory() -> None:
    request = one_input("FP32", [1, 3], bytes(12))
    output = request.outputs.add(name="y")
    output.parameters["classification"].int64_param = 1
    output.parameters["shared_memory_region"].string_param = "r"
    output.parameters["shared_memory_byte_size"].int64_param = 8
    assert "cannot go to shared memory" in refused(request)


def test_the_ids_are_kept_apart() -> None:
    body = message(id="client's", model_version="3").SerializeToString()
    request = codec.parse_request(body, "ours")
    assert (request.id, request.request_id) == ("client's", "ours")
    assert (request.model_name, request.model_version, request.nbytes) == ("m", "3", len(body))
