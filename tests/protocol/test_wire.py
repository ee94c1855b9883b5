"""The wire scanner against protobuf's own parser, and against bodies made to hurt it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.errors import InvalidRequestError, UpstreamError
from sidecar.protocol import fields, wire
from sidecar.protocol.pb import inference_pb2 as pb

#: An unknown field that takes a body over the size up to which protobuf parses it: then it is
#: walked. Every property is tested both ways.
PADDING = fields.length_delimited(15, b"\0" * wire.PARSED_BYTES)
BOTH_WAYS = pytest.mark.parametrize("walked", [False, True], ids=["parsed", "walked"])


def padded(body: bytes, walked: bool) -> bytes:
    return PADDING + body if walked else body


def reference(message: pb.ModelInferRequest | pb.ModelInferResponse) -> wire.Envelope:
    """The envelope as protobuf's parser sees it."""
    parameters = {}
    for name, value in message.parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            parameters[name] = getattr(value, choice)
    tensors = [*message.outputs, *getattr(message, "inputs", ())]
    shared = any("shared_memory_region" in tensor.parameters for tensor in tensors)
    return wire.Envelope(message.model_name, message.model_version, message.id, parameters, shared)


def facts(envelope: wire.Envelope) -> tuple[Any, ...]:
    """Comparable: a NaN equals itself, True is not 1, and the order of a map means nothing."""
    parameters = sorted((name, repr(value)) for name, value in envelope.parameters.items())
    names = (envelope.model_name, envelope.model_version, envelope.id)
    return (*names, parameters, envelope.uses_shared_memory)


# --- bodies ---------------------------------------------------------------------------------------


@st.composite
def varints(draw: st.DrawFn, values: st.SearchStrategy[int]) -> bytes:
    """A varint, now and then longer than it needs to be."""
    data = bytearray(fields.encode_varint(draw(values)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3])) if len(data) < 7 else 0):
        data[-1] |= 0x80
        data.append(0)
    return bytes(data)


def length_prefixed(contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return contents.flatmap(lambda data: varints(st.just(len(data))).map(lambda v: v + data))


def field(
    number: st.SearchStrategy[int], contents: st.SearchStrategy[bytes]
) -> st.SearchStrategy[bytes]:
    """A field of any wire type; ``contents`` is what a length-delimited one holds."""

    def tagged(wire_type: int, value: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        tag = number.flatmap(lambda n: varints(st.just(n << 3 | wire_type)))
        return st.tuples(tag, value).map(b"".join)

    return st.one_of(
        tagged(2, length_prefixed(contents)),
        tagged(2, length_prefixed(contents)),
        tagged(0, varints(st.integers(0, 2**64 - 1))),
        tagged(1, st.binary(min_size=8, max_size=8)),
        tagged(5, st.binary(min_size=4, max_size=4)),
    )


def group(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(st.integers(1, 20), inner).map(
        lambda item: (
            fields.encode_varint(item[0] << 3 | 3)
            + item[1]
            + fields.encode_varint(item[0] << 3 | 4)
        )
    )


def joined(item: st.SearchStrategy[bytes], most: int = 6) -> st.SearchStrategy[bytes]:
    return st.lists(item, max_size=most).map(b"".join)


NUMBERS = st.integers(1, 9)
TEXT = st.one_of(st.text(max_size=6).map(str.encode), st.binary(max_size=4))
KEYS = st.one_of(st.sampled_from([b"shared_memory_region", b"sequence_id", b"a", b"b", b""]), TEXT)
VALUES = joined(field(NUMBERS, TEXT), 3)
ENTRIES = joined(
    st.one_of(
        field(st.just(1), KEYS),
        field(st.just(2), VALUES),
        field(NUMBERS, TEXT),
        group(st.just(b"")),
    ),
    4,
)
TENSORS = joined(st.one_of(field(st.sampled_from([2, 4]), ENTRIES), field(NUMBERS, TEXT)), 4)
PLAIN = st.one_of(
    field(st.sampled_from([1, 2, 3]), TEXT),
    field(st.just(4), ENTRIES),
    field(st.sampled_from([5, 6]), TENSORS),
    field(st.integers(7, 3000), st.binary(max_size=40)),
)
BODIES = joined(st.one_of(PLAIN, PLAIN, PLAIN, group(joined(PLAIN, 2))), 8)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body with bytes changed, put in, or cut off."""
    data = bytearray(draw(BODIES))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["cut", "insert", "change"]))
        if change == "cut":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=3))
        elif place < len(data):
            data[place] = draw(st.integers(0, 255))
    return bytes(data)


ANY_BODY = st.one_of(BODIES, damaged(), st.binary(max_size=60))
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@BOTH_WAYS
@FUZZ
@given(body=ANY_BODY)
def test_a_request_reads_as_protobuf_reads_it(walked: bool, body: bytes) -> None:
    body = padded(body, walked)
    try:
        expected = reference(pb.ModelInferRequest.FromString(body))
    except DecodeError:
        expected = None
    try:
        found = wire.scan_request(body)
    except InvalidRequestError:
        assert expected is None
    else:
        assert expected is None or facts(found) == facts(expected)


@BOTH_WAYS
@FUZZ
@given(body=ANY_BODY)
def test_a_response_reads_as_protobuf_reads_it(walked: bool, body: bytes) -> None:
    body = padded(body, walked)
    try:
        message = pb.ModelInferResponse.FromString(body)
    except DecodeError:
        message = None
    try:
        found = wire.scan_response(body)
    except UpstreamError:
        assert message is None
        return
    if message is not None:
        assert facts(found) == facts(reference(message))
        head, raws = wire.split_response(body)
        assert list(map(bytes, raws)) == list(message.raw_output_contents)
        rest = pb.ModelInferResponse.FromString(head)
        rest.DiscardUnknownFields()
        message.ClearField("raw_output_contents")
        message.DiscardUnknownFields()
        assert rest == message


def request(raw_bytes: int = 16, **parameters: int | str) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="digits", model_version="2", id="a-1")
    message.inputs.add(name="image", datatype="FP32", shape=[1, raw_bytes // 4])
    message.outputs.add(name="scores")
    for name, value in parameters.items():
        if isinstance(value, int):
            message.parameters[name].int64_param = value
        else:
            message.parameters[name].string_param = value
    message.raw_input_contents.append(b"\1" * raw_bytes)
    return message


SIZES = pytest.mark.parametrize("raw_bytes", [16, 8192], ids=["parsed", "walked"])


@SIZES
def test_reads_names_id_and_parameters(raw_bytes: int) -> None:
    body = request(raw_bytes, sequence_id=-7, tenant="ä").SerializeToString()
    envelope = wire.scan_request(body)
    assert envelope == wire.Envelope(
        "digits", "2", "a-1", {"sequence_id": -7, "tenant": "ä"}, uses_shared_memory=False
    )
    assert wire.scan_request(memoryview(body)) == envelope


@SIZES
@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_finds_shared_memory(raw_bytes: int, where: str) -> None:
    message = request(raw_bytes)
    tensor = getattr(message, where)[0]
    tensor.parameters["shared_memory_byte_size"].int64_param = 16
    assert not wire.scan_request(message.SerializeToString()).uses_shared_memory
    tensor.parameters["shared_memory_region"].string_param = "weights"
    assert wire.scan_request(message.SerializeToString()).uses_shared_memory


@SIZES
def test_the_key_elsewhere_is_no_shared_memory(raw_bytes: int) -> None:
    message = request(raw_bytes, shared_memory_region="in the request's own parameters")
    message.inputs[0].name = "shared_memory_region"
    message.inputs[0].contents.bytes_contents.append(b"shared_memory_region" * 200)
    message.inputs[0].parameters["x"].string_param = "shared_memory_region"
    assert not wire.scan_request(message.SerializeToString()).uses_shared_memory


def test_a_field_of_the_wrong_wire_type_is_unknown() -> None:
    body = PADDING + b"\x08\x05" + request().SerializeToString() + b"\x08\x05"
    assert wire.scan_request(body).model_name == "digits"


MALFORMED = {
    "cut within a length": b"\x0a",
    "cut within a value": b"\x0a\x05dig",
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
    "an endless varint": b"\x08" + b"\xff" * 20,
    "an endless tag": b"\xff" * 20,
    "field number 0": b"\x02\x00",
    "the end of no group": b"\x0c",
    "a group without an end": b"\x0b\x08\x01",
    "a group with another's end": b"\x0b\x14",
    "nested groups": b"\x0b" * 1000,
    "wire type 7": b"\x0f",
    "a fixed value cut short": b"\x09\0\0",
    "a name that is not UTF-8": b"\x0a\x02\xff\xfe",
    "a parameter cut short": b"\x22\x02\x0a\x05",
    "a parameter's number cut short": b"\x22\x04\x12\x02\x10\x80",
}


@BOTH_WAYS
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_the_callers_mistake(walked: bool, body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not a ModelInferRequest"):
        wire.scan_request(padded(body, walked))
    with pytest.raises(UpstreamError, match="not a ModelInferResponse") as failure:
        wire.scan_response(padded(body, walked))
    assert failure.value.code == "INTERNAL"


def test_an_empty_body_names_no_model() -> None:
    assert wire.scan_request(b"") == wire.Envelope()


@pytest.mark.parametrize(
    "unit",
    [b"\x2a\x00", b"\x22\x00", b"\x08\x01", b"\x0b\x0c", b"\x0a\x00"],
    ids=["inputs", "parameters", "varints", "groups", "names"],
)
def test_the_number_of_fields_is_bounded(unit: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="more than 65536 fields"):
        wire.scan_request(unit * 70_000)


def test_fields_inside_tensors_count_against_the_same_bound() -> None:
    # 40 inputs, each of which hides 2,000 entries in its parameters.
    tensor = b"\x22\x00" * 2000
    body = fields.length_delimited(5, tensor) * 40
    with pytest.raises(InvalidRequestError, match="more than 65536 fields"):
        wire.scan_request(body)


def test_the_time_does_not_grow_with_the_tensors() -> None:
    # The processor time of this thread, so that a busy machine does not matter; the real ratio is
    # near 1, a scan of the bytes would make it thousands.
    def seconds(body: bytes) -> float:
        best = float("inf")
        for _ in range(20):
            start = time.thread_time()
            wire.scan_request(body)
            best = min(best, time.thread_time() - start)
        return best

    small = seconds(request(8 * 1024).SerializeToString())
    large = seconds(request(64 * 2**20).SerializeToString())
    assert large < 50 * small + 1e-4


# --- overriding -----------------------------------------------------------------------------------


@SIZES
def test_nothing_changed_is_the_same_object(raw_bytes: int) -> None:
    body = request(raw_bytes).SerializeToString()
    assert wire.override_request(body) is body
    assert wire.override_request(body, "digits", "2", "a-1") is body
    response = pb.ModelInferResponse(model_name="digits")
    response.parameters["by"].string_param = "fallback"
    answer = response.SerializeToString()
    assert wire.override_response(answer, "digits", "", "", parameters={"by": "fallback"}) is answer


@SIZES
def test_override_request_changes_what_it_is_told_to(raw_bytes: int) -> None:
    message = request(raw_bytes, sequence_id=3)
    body = wire.override_request(message.SerializeToString(), "other", "", "b")
    message.model_name, message.model_version, message.id = "other", "", "b"
    assert pb.ModelInferRequest.FromString(body) == message
    assert wire.scan_request(body).model_name == "other"


NAMES = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
PARAMETERS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=150),
    ),
    max_size=3,
)


@BOTH_WAYS
@FUZZ
@given(name=NAMES, version=NAMES, id_=NAMES, before=PARAMETERS, after=PARAMETERS)
def test_override_response(
    walked: bool,
    name: str | None,
    version: str | None,
    id_: str | None,
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    original = pb.ModelInferResponse(model_name="m", model_version="v", id="i")
    original.outputs.add(name="y", datatype="FP32", shape=[1])
    original.raw_output_contents.append(b"1234")
    body = wire.override_response(padded(original.SerializeToString(), walked), parameters=before)
    body = wire.override_response(body, name, version, id_, parameters=after)
    envelope = wire.scan_response(body)
    assert envelope.model_name == ("m" if name is None else name)
    assert envelope.model_version == ("v" if version is None else version)
    assert envelope.id == ("i" if id_ is None else id_)
    expected = {**before, **after}
    assert envelope.parameters == expected
    for key, value in envelope.parameters.items():
        assert type(value) is type(expected[key])
    message = pb.ModelInferResponse.FromString(body)
    assert facts(reference(message)) == facts(envelope)
    assert list(message.outputs) == list(original.outputs)
    assert list(message.raw_output_contents) == [b"1234"]


def test_an_answer_with_two_names_keeps_the_last() -> None:
    body = PADDING + b"\x0a\x01a\x0a\x01b"
    assert wire.scan_response(body).model_name == "b"
    assert pb.ModelInferResponse.FromString(body).model_name == "b"
