"""Names in stream elements are changed by appending: as protobuf's own parser reads them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import UpstreamError
from sidecar.protocol import wire
from sidecar.protocol.pb import inference_pb2 as pb

NAMES = st.text(max_size=20).filter(lambda text: text.isprintable())


@st.composite
def elements(draw: st.DrawFn) -> pb.ModelStreamInferResponse:
    element = pb.ModelStreamInferResponse(error_message=draw(NAMES))
    if draw(st.booleans()):
        answer = element.infer_response
        answer.SetInParent()
        answer.model_name, answer.model_version = draw(NAMES), draw(NAMES)
        answer.id = draw(NAMES)
        for size in draw(st.lists(st.sampled_from([0, 3, 5000]), max_size=3)):
            answer.outputs.add(name="y", datatype="UINT8", shape=[size])
            answer.raw_output_contents.append(bytes(size))
        answer.parameters["triton_final_response"].bool_param = draw(st.booleans())
    return element


@given(elements(), NAMES, NAMES)
def test_only_the_names_change(element, name, version):
    body, is_error = wire.override_element(element.SerializeToString(), name, version)
    assert is_error == bool(element.error_message)
    if element.HasField("infer_response"):
        element.infer_response.model_name = name
        element.infer_response.model_version = version
    assert pb.ModelStreamInferResponse.FromString(body) == element


@given(elements())
def test_where_they_agree_it_is_the_same_object(element):
    answer = element.infer_response
    body = element.SerializeToString()
    assert wire.override_element(body, answer.model_name, answer.model_version)[0] is body


@given(st.binary(max_size=64))
def test_any_bytes_are_an_element_or_a_clear_error(body):
    with suppress(UpstreamError):  # and nothing else
        assert wire.override_element(body, "m", "1")[0].startswith(body)


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x12\x05\x0a\x09xyz", b"\x12\x7f"])
def test_what_is_none_is_the_other_servers_fault(body):
    with pytest.raises(UpstreamError, match="upstream server's answer"):
        wire.override_element(body, "m", "1")
