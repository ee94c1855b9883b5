"""Answers: what is joined by hand is what protobuf would have written; and classification."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sidecar.errors import InvalidRequestError
from sidecar.gateway.messages import InferResponse, OutputTensor, RegionRef
from sidecar.protocol import encode
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from tests.support.models import example

# --- encode_response ------------------------------------------------------------------------------


def reference(response: InferResponse, raws: list[bytes]) -> pb.ModelInferResponse:
    """The same answer, made by protobuf alone."""
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for output in response.outputs:
        tensor = message.outputs.add(name=output.name, datatype=output.datatype)
        tensor.shape.extend(output.shape)
        if output.region is not None:
            tensor.parameters["shared_memory_region"].string_param = output.region.region
            tensor.parameters["shared_memory_byte_size"].int64_param = output.region.byte_size
            if output.region.offset:
                tensor.parameters["shared_memory_offset"].int64_param = output.region.offset
    for name, value in response.parameters.items():
        encode.set_parameter(message.parameters[name], value)
    message.raw_output_contents.extend(raws)
    return message


def little_endian(array: np.ndarray) -> bytes:
    if array.dtype == object:
        return b"".join(len(e).to_bytes(4, "little") + e for e in array.ravel())
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).tobytes()


def layouts(datatype: str) -> dict[str, np.ndarray]:
    """The same datatype in memory as runtimes may give it; some over the size that is copied."""
    plain = example(datatype, (40, 60), seed=3)
    made = {
        "contiguous": plain,
        "small": plain[:2, :2],
        "transposed": plain.T,
        "strided": plain[::3, ::-2],
        "fortran": np.asfortranarray(plain),
        "broadcast": np.broadcast_to(plain[:1], (40, 60)),
        "empty": plain[:0],
        "scalar": plain[0, 0:1].reshape(()),
    }
    if BY_NAME[datatype].item_bytes > 1 and datatype != "BF16":
        made["big-endian"] = plain.astype(plain.dtype.newbyteorder(">"))
        made["big-endian strided"] = made["big-endian"][:, ::7]
    return made


@pytest.mark.parametrize("datatype", BY_NAME)
def test_answers_are_what_protobuf_writes(datatype: str) -> None:
    outputs, raws = [], []
    for name, array in layouts(datatype).items():
        outputs.append(OutputTensor(name, datatype, array.shape, array))
        raws.append(little_endian(array))
    response = InferResponse("m", "2", "an id", outputs)
    written = encode.encode_response(response)
    assert pb.ModelInferResponse.FromString(written) == reference(response, raws)


PARAMETERS: list[dict[str, Any]] = [
    {},
    {"triton_final_response": True, "sidecar_fallback": "2/int8", "n": -5, "f": 0.25},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=["none", "four"])
@pytest.mark.parametrize("identity", ["", "x", "ünïcode 🚀", "i" * 5000])
def test_the_rest_of_an_answer(parameters: Any, identity: str) -> None:
    array = np.arange(3, dtype=np.int64)
    outputs = [
        OutputTensor("here", "INT64", (3,), array),
        OutputTensor("there", "INT64", (3,), None, RegionRef("r", 24, 8)),
        OutputTensor("", "INT64", (3, 1), array.reshape(3, 1)),
        OutputTensor("start", "INT64", (2**40,), None, RegionRef("r", 24)),
    ]
    response = InferResponse("m", "", identity, outputs, parameters)
    raws = [array.tobytes(), b"", array.tobytes(), b""]
    written = encode.encode_response(response)
    assert pb.ModelInferResponse.FromString(written) == reference(response, raws)


def test_an_answer_without_outputs() -> None:
    response = InferResponse("m", "1", "", [])
    assert encode.encode_response(response) == reference(response, []).SerializeToString()


def test_answers_with_names_in_common_do_not_mix() -> None:
    """Serialized heads are kept by name, datatype and shape: each must count."""
    for datatype, shape in (("INT8", (2, 3)), ("INT8", (3, 2)), ("UINT8", (2, 3)), ("INT8", (6,))):
        array = np.ones(shape, datatype.lower())
        response = InferResponse("m", "1", "", [OutputTensor("y", datatype, shape, array)])
        written = encode.encode_response(response)
        assert pb.ModelInferResponse.FromString(written) == reference(response, [b"\1" * 6])


def test_large_arrays_are_not_copied_before_they_are_joined() -> None:
    array = np.arange(4096, dtype=np.float32)
    raw = encode.raw_bytes(array)
    assert isinstance(raw, memoryview)
    assert np.shares_memory(np.frombuffer(raw, np.uint8), array)


def test_text_becomes_bytes() -> None:
    array = np.array(["é", b"\xff", ""], dtype=object)
    assert encode.raw_bytes(array) == b"\2\0\0\0\xc3\xa9\1\0\0\0\xff\0\0\0\0"


# --- classification -------------------------------------------------------------------------------


def classes(scores: Any, count: int, *, batched: bool = False) -> Any:
    return encode.classify(np.asarray(scores), count, "y", batched=batched).tolist()


def test_one_row_is_ranked() -> None:
    scores = np.array([0.1, 0.7, 0.2], np.float32)
    assert classes(scores, 2) == [b"0.700000:1", b"0.200000:2"]
    assert classes(scores, 9) == [b"0.700000:1", b"0.200000:2", b"0.100000:0"]
    assert classes(scores.reshape(3, 1), 1) == [b"0.700000:1"]
    assert classes(np.float32(0.5), 3) == [b"0.500000:0"]


def test_each_row_of_a_batch_is_ranked_apart() -> None:
    scores = np.array([[1, 3, 2], [9, 8, 9]], np.float64)
    assert classes(scores, 2, batched=True) == [
        [b"3.000000:1", b"2.000000:2"],
        [b"9.000000:0", b"9.000000:2"],  # equals in the order of their index
    ]
    ties = np.tile([[0.0, 1.0, 0.0]], (1, 100))
    ones = [f"1.000000:{index}".encode() for index in range(1, 300, 3)]
    zeros = [f"0.000000:{index}".encode() for index in range(300) if index % 3 != 1]
    assert classes(ties, 300, batched=True) == [ones + zeros]
    assert classes(np.zeros((2, 2, 2)), 3, batched=True)[1] == [
        b"0.000000:0", b"0.000000:1", b"0.000000:2",
    ]  # fmt: skip
    assert classes(np.array([5.0, 6.0]), 1, batched=True) == [[b"5.000000:0"], [b"6.000000:0"]]


@pytest.mark.parametrize("shape", [(0, 3), (0,), (2, 0)])
def test_nothing_to_rank(shape: tuple[int, ...]) -> None:
    ranked = encode.classify(np.zeros(shape, np.float32), 2, "y", batched=True)
    assert ranked.shape[0] == shape[0]
    assert ranked.size == 0
    assert encode.classify(np.zeros(0), 2, "y", batched=False).shape == (0,)


def test_integers_are_written_as_integers_and_ranked_exactly() -> None:
    near = np.array([2**63 - 2, 2**63 - 1, -(2**63)], np.int64)  # alike as floats
    assert classes(near, 3) == [
        f"{2**63 - 1}:1".encode(), f"{2**63 - 2}:0".encode(), f"{-(2**63)}:2".encode(),
    ]  # fmt: skip
    assert classes(np.array([1, 255], np.uint8), 2) == [b"255:1", b"1:0"]
    assert classes(np.array([2**64 - 1, 0], np.uint64), 1) == [f"{2**64 - 1}:0".encode()]
    assert classes(np.array([False, True]), 2) == [b"1:1", b"0:0"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_ranked(dtype: Any) -> None:
    assert classes(np.array([0.25, -1.5, np.nan, 2]).astype(dtype), 4) == [
        b"2.000000:3", b"0.250000:0", b"-1.500000:1", b"nan:2",
    ]  # fmt: skip


def test_texts_cannot_be_ranked() -> None:
    with pytest.raises(InvalidRequestError, match="output 'y' is not numeric"):
        encode.classify(np.array([b"a"], object), 1, "y", batched=False)
