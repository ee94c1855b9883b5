"""Whatever the bytes are: arrays that are right, or a refusal; in bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import InvalidRequestError
from sidecar.gateway.messages import InferRequest, RegionRef
from sidecar.protocol import arrays, codec, encode, fields
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import TensorSpec
from tests.protocol.test_wire import BODIES, damaged
from tests.support.models import example

#: An unknown field, which takes a body over the size up to which protobuf parses it whole. Its odd
#: length leaves the tensors behind it at odd addresses.
PADDING = fields.length_delimited(15, b"\0" * (codec.SPLIT_BYTES + 1))

#: A model that takes anything: one input for each datatype, and one of a fixed shape.
SPECS = {name: TensorSpec(name, name, (-1, -1), optional=True) for name in BY_NAME}
SPECS["fixed"] = TensorSpec("fixed", "FP32", (2, 3), optional=True)
SPECS["scalar"] = TensorSpec("scalar", "INT64", (), optional=True)

FUZZ = settings(
    max_examples=300, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def read_region(ref: RegionRef) -> np.ndarray:
    """A region of 4096 bytes, as strict as the real one."""
    if ref.offset + ref.byte_size > 4096:
        message = "outside of the region"
        raise InvalidRequestError(message)
    return np.zeros(ref.byte_size, np.uint8)


def answer(body: bytes) -> Any:
    """What a body means, in a form that can be compared; ``None`` where it is refused.

    Anything but a refusal escapes and fails the test.
    """
    try:
        request = codec.parse_request(body, "id")
        got = arrays.materialize(request, SPECS, 0, read_region)
    except InvalidRequestError:
        return None
    for name, array in got.items():
        spec = SPECS[name]
        assert array.dtype == BY_NAME[spec.datatype].numpy
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert array.ndim == len(spec.shape)
        for size, declared in zip(array.shape, spec.shape, strict=True):
            assert declared in {size, -1}
    return facts(request), {
        name: (array.dtype.str, array.shape, bytes(encode.raw_bytes(array)))
        for name, array in got.items()
    }


def facts(request: InferRequest) -> Any:
    parameters = sorted((name, repr(value)) for name, value in request.parameters.items())
    names = (request.model_name, request.model_version, request.id)
    return *names, parameters, [repr(output) for output in request.outputs]


# --- requests -------------------------------------------------------------------------------------


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A request that is right: raw or typed, some inputs in shared memory."""
    request = pb.ModelInferRequest(model_name="m", id=draw(st.text(max_size=3)))
    raw = draw(st.booleans())
    for name in draw(st.lists(st.sampled_from(sorted(BY_NAME)), unique=True, max_size=4)):
        datatype = BY_NAME[name]
        if not raw and datatype.contents_field is None:
            continue
        shape = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
        tensor = request.inputs.add(name=name, datatype=name, shape=shape)
        array = example(name, shape, draw(st.integers(0, 5)))
        if datatype.item_bytes and draw(st.integers(0, 4)) == 0:
            tensor.parameters["shared_memory_region"].string_param = "r"
            tensor.parameters["shared_memory_byte_size"].int64_param = array.nbytes
        elif raw:
            request.raw_input_contents.append(bytes(encode.raw_bytes(array)))
        else:
            tensor.contents.SetInParent()
            getattr(tensor.contents, str(datatype.contents_field)).extend(array.ravel().tolist())
    for number in draw(st.lists(st.integers(0, 2), max_size=2)):
        output = request.outputs.add(name=f"y{number}")
        if draw(st.booleans()):
            output.parameters["classification"].int64_param = draw(st.integers(0, 2**63 - 1))
    if draw(st.booleans()):
        request.parameters["timeout"].int64_param = draw(st.integers(0, 2**63 - 1))
    return request


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A right request with bits flipped, bytes put in, taken out, doubled, or cut off."""
    body = bytearray(draw(requests()).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        if not body:
            break
        at = draw(st.integers(0, len(body) - 1))
        match draw(st.integers(0, 5)):
            case 0:
                body[at] ^= 1 << draw(st.integers(0, 7))
            case 1:  # a length, if it is one, that is a little or far off
                body[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, (body[at] + 1) & 0xFF]))
            case 2:
                del body[at:]
            case 3:
                del body[at : at + draw(st.integers(1, 8))]
            case 4:
                body[at:at] = body[at : at + draw(st.integers(1, 40))]
            case _:
                body[at:at] = draw(st.binary(max_size=10))
    return bytes(body)


# --- properties -----------------------------------------------------------------------------------


@FUZZ
@given(requests())
def test_right_requests_mean_what_protobuf_says(request: pb.ModelInferRequest) -> None:
    body = request.SerializeToString()
    got = answer(body)
    assert got is not None
    raws = list(request.raw_input_contents)
    for tensor in request.inputs:
        _, shape, data = got[1][tensor.name]
        assert shape == tuple(tensor.shape)
        if not tensor.parameters and raws:
            assert data == raws.pop(0)
    assert not raws
    assert answer(PADDING + body) == got
    assert answer(body + PADDING) == got


@FUZZ
@given(mutated())
def test_mutated_requests(body: bytes) -> None:
    """Refused or read, and the same whether protobuf parses the whole or tensors are cut out."""
    assert answer(PADDING + body) == answer(body)


@FUZZ
@given(st.one_of(st.binary(max_size=200), BODIES, damaged()))
def test_arbitrary_bytes(body: bytes) -> None:
    assert answer(PADDING + body) == answer(body)


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("datatype", BY_NAME)
def test_large_tensors_at_any_address(datatype: str, offset: int) -> None:
    """Over the bound tensors are views of the body, wherever in it they lie."""
    request = pb.ModelInferRequest(model_name="m" * offset)
    array = example(datatype, (300, 90), offset)
    request.inputs.add(name=datatype, datatype=datatype, shape=array.shape)
    request.raw_input_contents.append(bytes(encode.raw_bytes(array)))
    body = request.SerializeToString() + PADDING
    got = answer(body)
    assert got is not None
    assert got[1][datatype][2] == request.raw_input_contents[0]


def test_a_group_beside_large_tensors() -> None:
    """An unknown group is skipped like any unknown field; the tensors are still there."""
    group = bytes([(9 << 3) | 3, (1 << 3) | 0, 7, (9 << 3) | 4])
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="FP32", datatype="FP32", shape=[200, 100])
    request.raw_input_contents.append(example("FP32", (200, 100)).tobytes())
    body = request.SerializeToString()
    assert answer(group + body) == answer(body) is not None


# --- bounds ---------------------------------------------------------------------------------------

MIB = 2**20


def huge(**tensor: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(**tensor)
    return request


def many_parameters() -> bytes:
    """A map of 300,000 entries, in one input."""
    entry = [
        fields.length_delimited(4, fields.length_delimited(1, b"%06d" % n) + b"\x12\x02\x08\x01")
        for n in range(300_000)
    ]
    return fields.length_delimited(5, fields.length_delimited(1, b"FP32") + b"".join(entry))


def promises(shape: list[int], raw: bytes, datatype: str = "FP32") -> bytes:
    request = huge(name=datatype, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
    return request.SerializeToString()


HOSTILE = {
    "a million inputs": lambda: b"\x2a\x00" * MIB,
    "a million outputs": lambda: b"\x32\x00" * MIB,
    "a million raw entries": lambda: b"\x3a\x00" * MIB,
    "a million unknown fields": lambda: b"\x78\x00" * MIB,
    "300,000 parameters": many_parameters,
    "four million dimensions": lambda: huge(
        name="FP32", datatype="FP32", shape=[1] * (4 * MIB)
    ).SerializeToString(),
    "a name of 4 MiB": lambda: huge(name="n" * 4 * MIB, datatype="FP32").SerializeToString(),
    "a datatype of 4 MiB": lambda: huge(name="FP32", datatype="n" * 4 * MIB).SerializeToString(),
    "a shape of 2**60 elements": lambda: promises([2**30, 2**30], b""),
    "an empty shape of 2**62": lambda: promises([0, 2**62], b""),
    "2**40 strings": lambda: promises([2**20, 2**20], bytes(4096), "BYTES"),
    "a string of 4 GiB": lambda: promises([1, 1], b"\xff\xff\xff\xffabc", "BYTES"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_and_memory_follow_the_bytes_sent(name: str) -> None:
    """Not what they promise. (The bounds are far above what is needed: 0.3 s at most here.)"""
    body = HOSTILE[name]()
    began = time.process_time()
    assert answer(body) is None
    assert time.process_time() - began < 3
    tracemalloc.start()
    try:
        answer(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB + 4 * len(body)


@pytest.mark.parametrize("field", ["bool_contents", "int_contents", "fp32_contents"])
def test_typed_data_by_the_million(field: str) -> None:
    name = {"bool_contents": "BOOL", "int_contents": "INT8", "fp32_contents": "FP32"}[field]
    request = huge(name=name, datatype=name, shape=[2, MIB])
    getattr(request.inputs[0].contents, field).extend([1] * (2 * MIB))
    body = request.SerializeToString()
    began = time.process_time()
    got = codec.parse_request(body).inputs[0].array
    assert time.process_time() - began < 3
    assert got is not None
    assert got.size == 2 * MIB
    assert got.min() == got.max() == 1
