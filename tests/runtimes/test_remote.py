"""``remote`` in front of a server that works: what is read at start, forwarded, and converted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sidecar.config import ModelConfig
from sidecar.errors import (
    ArtifactError,
    InvalidRequestError,
    SidecarError,
    UpstreamError,
)
from sidecar.protocol import fields
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes import remote
from sidecar.runtimes.base import TensorSpec
from tests.clients import certificates
from tests.support.models import assert_same, example
from tests.support.upstream import (
    PATIENCE_S,
    Model,
    Upstream,
    remote_variant,
    request,
)

TYPED = [name for name, datatype in BY_NAME.items() if datatype.contents_field]


@pytest.fixture
def upstream():
    with Upstream() as running:
        yield running


@pytest.fixture
def build():
    made = []

    def make(upstream: Upstream, **settings: object):
        made.append(remote.build(remote_variant(upstream.address, **settings)))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


def tensor(name: str, datatype: str, shape: list[int]) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape}


# --- at start -------------------------------------------------------------------------------------


def test_reads_the_signature(upstream, build):
    upstream.model.inputs = (
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("mask", "BOOL", (-1,), optional=True),
    )
    runtime = build(upstream)
    assert runtime.signature.inputs == upstream.model.inputs
    assert runtime.signature.outputs == upstream.model.outputs
    assert runtime.signature.max_batch_size == 8
    assert runtime.signature.platform == "test_identity"
    assert runtime.signature.backend == "remote"
    assert runtime.placement.device == upstream.address
    assert runtime.placement.details == {"dialect": "triton", "model": "there"}


STRING_ENTRY = fields.length_delimited(1, b"k") + fields.length_delimited(2, b"v")
PARAMETER_ENTRY = fields.length_delimited(1, b"k") + fields.length_delimited(2, b"\x08\x01")


@pytest.mark.parametrize("entry", [STRING_ENTRY, PARAMETER_ENTRY], ids=["oip", "mlserver"])
def test_metadata_of_either_dialect_is_read(upstream, build, entry):
    upstream.extra["ModelMetadata"] = fields.length_delimited(6, entry)
    assert build(upstream).signature.inputs == upstream.model.inputs


def test_without_model_config_requests_are_not_joined(upstream, build):
    upstream.missing.add("ModelConfig")
    assert build(upstream).signature.max_batch_size == 0


@pytest.mark.parametrize("dialect", ["kserve", "mlserver"])
def test_other_dialects_are_not_asked_for_model_config(upstream, build, dialect):
    assert build(upstream, dialect=dialect).signature.max_batch_size == 0


def test_a_contradicting_config_is_an_error_where_metadata_is_exact(upstream, build):
    inputs = [tensor("x", "INT8", [-1, 4])]
    with pytest.raises(ArtifactError, match="'x' is FP32 in the artifact, INT8 in the config"):
        build(upstream, inputs=inputs)
    assert build(upstream, inputs=inputs, dialect="mlserver").signature.inputs[0].datatype == "INT8"


@pytest.mark.parametrize("field", ["inputs", "outputs"])
def test_a_model_that_describes_nothing_must_be_declared(upstream, build, field):
    setattr(upstream.model, field, ())
    with pytest.raises(ArtifactError, match=f"does not say its {field}; declare .*`{field}`"):
        build(upstream)
    declared = [tensor("z", "INT64", [3])]
    specs = getattr(build(upstream, **{field: declared}).signature, field)
    assert specs == (TensorSpec("z", "INT64", (3,)),)


def test_an_unknown_datatype_must_be_declared(upstream, build):
    upstream.model.inputs = (TensorSpec("x", "", (-1, 4)),)
    with pytest.raises(ArtifactError, match="does not say its datatype of x"):
        build(upstream)
    runtime = build(upstream, inputs=[tensor("x", "FP32", [-1, 4])])
    assert runtime.signature.inputs == (TensorSpec("x", "FP32", (-1, 4)),)


def test_a_model_is_called_the_same_there_unless_the_config_says_otherwise():
    def named(**runtime: str) -> str | None:
        variant = {
            "name": "v", "version": 1, "roles": ["serving"],
            "runtime": {"kind": "remote", "address": "127.0.0.1:1", **runtime},
        }  # fmt: skip
        model = ModelConfig.model_validate({"name": "here", "variants": [variant]})
        return model.variants[0].runtime.model_name

    assert named() == "here"
    assert named(model_name="there") == "there"


# --- forwarding -----------------------------------------------------------------------------------


def test_forwards_the_bytes_and_changes_only_the_names(upstream, build):
    body = request(2, id="a-1").SerializeToString()
    answer = build(upstream).forward(body, timeout_s=5)
    (call,) = upstream.calls
    assert call.body.startswith(body)
    there = pb.ModelInferRequest.FromString(call.body)
    assert (there.model_name, there.model_version, there.id) == ("there", "", "a-1")
    response = pb.ModelInferResponse.FromString(answer.body)
    assert (response.model_name, response.model_version, response.id) == ("there", "1", "a-1")
    assert list(response.raw_output_contents) == [bytes(range(16)) * 2]


def test_forwards_the_version_that_the_config_gives(upstream, build):
    build(upstream, model_version="7").forward(request().SerializeToString(), timeout_s=5)
    assert pb.ModelInferRequest.FromString(upstream.calls[0].body).model_version == "7"


def test_a_request_that_names_the_same_is_not_touched(upstream, build):
    body = request(model="there", version="").SerializeToString()
    build(upstream).forward(body, timeout_s=5)
    assert upstream.calls[0].body == body


def test_a_body_that_is_no_request_does_not_go_out(upstream, build):
    with pytest.raises(InvalidRequestError, match="not a ModelInferRequest"):
        build(upstream).forward(b"\x0a\x05dig", timeout_s=5)
    assert upstream.calls == []


def test_metadata_is_passed_on_but_not_what_belongs_to_one_hop(upstream, build):
    runtime = build(upstream)
    runtime.admin_token = "secret"
    runtime.forward(
        request().SerializeToString(),
        timeout_s=5,
        metadata=[
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("X-Request-Id", "r-7"),
            ("some-bin", b"\0\xff"),
            ("authorization", "Bearer secret"),
            ("content-type", "text/html"),
            ("user-agent", "a client"),
            ("te", "gzip"),
            ("grpc-timeout", "1n"),
            ("grpc-encoding", "br"),
            (":path", "/elsewhere"),
            ("transfer-encoding", "chunked"),
            ("x-name", "Zoë"),
            ("x-split", "a\nb"),
            ("bad key", "v"),
            ("other-bin", "not bytes"),
        ],
    )
    seen = upstream.calls[0].metadata
    ours = {key: value for key, value in seen.items() if not key.startswith("user-agent")}
    assert ours == {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "x-request-id": "r-7",
        "some-bin": b"\0\xff",
    }
    assert "a client" not in seen["user-agent"]


@pytest.mark.parametrize("token", [None, "ours"])
def test_an_authorization_that_is_not_ours_is_passed_on(upstream, build, token):
    runtime = build(upstream)
    runtime.admin_token = token
    runtime.forward(
        request().SerializeToString(), timeout_s=5, metadata=[("authorization", "Bearer theirs")]
    )
    assert upstream.calls[0].metadata["authorization"] == "Bearer theirs"


def test_metadata_of_the_answer_comes_back(upstream, build):
    def infer(body, context):
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bin", b"\1")))
        return upstream.identity(body, context)

    upstream.infer = infer
    answer = build(upstream).forward(request().SerializeToString(), timeout_s=5)
    assert answer.metadata == (("x-first", "1"), ("x-last", "2"), ("x-bin", b"\1"))


@pytest.mark.parametrize(
    ("given", "limit", "least", "most"),
    [(7.0, 60, 5, 7), (None, 9, 7, 9), (100.0, 9, 7, 9)],
    ids=["the caller's", "the config's", "the shorter one"],
)
def test_the_deadline_is_carried_through(upstream, build, given, limit, least, most):
    runtime = build(upstream, timeout_s=limit)
    runtime.forward(request().SerializeToString(), timeout_s=given)
    assert least < upstream.calls[0].remaining_s < most + 0.1  # gRPC rounds up


def test_many_requests_are_in_flight_at_once(upstream, build):
    together = threading.Barrier(12)

    def infer(body, context):
        together.wait(PATIENCE_S)  # passes only if all twelve are here at the same time
        return upstream.identity(body, context)

    upstream.infer = infer
    runtime = build(upstream)
    bodies = [request(id=f"n{n}").SerializeToString() for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: runtime.forward(body, timeout_s=20), bodies))
    ids = [pb.ModelInferResponse.FromString(answer.body).id for answer in answers]
    assert ids == [f"n{n}" for n in range(12)]


def test_sixteen_mebibytes_pass_both_ways(upstream, build):
    runtime = build(upstream)
    raw = np.random.default_rng(0).bytes(16 * 2**20)
    answer = runtime.forward(request(2**20, raw=raw).SerializeToString(), timeout_s=20)
    assert pb.ModelInferResponse.FromString(answer.body).raw_output_contents[0] == raw
    array = np.frombuffer(raw, np.float32).reshape(-1, 4)
    (back,) = runtime.infer({"x": array})
    assert back.tobytes() == raw


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", BY_NAME)
def test_arrays_of_every_datatype_come_back(upstream, build, datatype):
    upstream.model.inputs = (TensorSpec("x", datatype, (-1, 3)),)
    upstream.model.outputs = (TensorSpec("y", datatype, (-1, 3)),)
    runtime = build(upstream)
    for rows in (0, 1, 5):
        array = example(datatype, (rows, 3), seed=rows)
        (back,) = runtime.infer({"x": array})
        assert_same(back, array)
        assert back.flags.writeable


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_answers_are_read(upstream, build, datatype):
    upstream.model.inputs = (TensorSpec("x", datatype, (-1, 3)),)
    upstream.model.outputs = (TensorSpec("y", datatype, (-1, 3)),)
    array = example(datatype, (4, 3), seed=1)

    def infer(_body, _context):
        answer = pb.ModelInferResponse(model_name="there")
        output = answer.outputs.add(name="y", datatype=datatype, shape=[4, 3])
        contents = getattr(output.contents, BY_NAME[datatype].contents_field)
        contents.extend(array.ravel().tolist())
        return answer.SerializeToString()

    upstream.infer = infer
    (back,) = build(upstream).infer({"x": array})
    assert_same(back, array)


def test_outputs_are_found_by_name_and_given_in_the_order_asked_for(build):
    specs = tuple(TensorSpec(name, "FP32", (-1, 4)) for name in "abc")
    model = Model(inputs=specs, outputs=tuple(reversed(specs)))
    arrays = {name: np.full((1, 4), n, np.float32) for n, name in enumerate("abc")}
    with Upstream(model) as upstream:
        runtime = build(upstream)
        c, b = runtime.infer(arrays, ["c", "b"])
        assert (c[0, 0], b[0, 0]) == (0, 1)  # the server answers a, b, c under the names c, b, a
        asked = pb.ModelInferRequest.FromString(upstream.calls[0].body)
        assert [output.name for output in asked.outputs] == ["c", "b"]


# --- connections ----------------------------------------------------------------------------------


def test_a_unix_socket(build, tmp_path: Path):
    with Upstream(address=f"unix:{tmp_path}/s") as upstream:
        runtime = build(upstream)
        runtime.forward(request().SerializeToString(), timeout_s=5)
        assert len(upstream.calls) == 1


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> certificates.Files:
    return certificates.write(tmp_path_factory.mktemp("tls"))


def test_tls(build, pems):
    with Upstream(tls=pems) as upstream:
        runtime = build(upstream, tls={"ca": str(pems.ca), "server_name": "localhost"})
        assert runtime.placement.details["tls"] == "server"
        runtime.forward(request().SerializeToString(), timeout_s=5)
        with pytest.raises(SidecarError, match=r"(?i)UNAVAILABLE.*(certificate|handshake|ssl)"):
            build(upstream, tls={}, connect_timeout_s=0.5)  # not an authority of this system
        other = {"ca": str(pems.ca), "server_name": "another.example"}
        with pytest.raises(SidecarError, match="UNAVAILABLE"):
            build(upstream, tls=other, connect_timeout_s=0.5)
        with pytest.raises(SidecarError, match="did not become ready"):
            build(upstream, connect_timeout_s=0.5)  # no TLS at all


def test_mutual_tls(build, pems):
    ours = {"certificate": str(pems.client), "key": str(pems.client_key)}
    with Upstream(tls=pems, client_certificates=True) as upstream:
        runtime = build(upstream, tls={"ca": str(pems.ca), **ours})
        assert runtime.placement.details["tls"] == "mutual"
        runtime.forward(request().SerializeToString(), timeout_s=5)
        with pytest.raises(SidecarError, match="did not become ready"):
            build(upstream, tls={"ca": str(pems.ca)}, connect_timeout_s=0.5)


def test_a_file_that_is_not_pem_is_named(upstream, build, tmp_path: Path):
    wrong = tmp_path / "ca.pem"
    wrong.write_bytes(b"\x30\x82\x01\x0a")
    with pytest.raises(ArtifactError, match=r"tls\.ca: .*ca\.pem is not a PEM file"):
        build(upstream, tls={"ca": str(wrong)})


def test_ready_follows_the_model(upstream, build):
    runtime = build(upstream)
    assert runtime.ready()
    upstream.ready = False
    assert not runtime.ready()


def test_a_closed_runtime_says_so(upstream, build):
    runtime = build(upstream)
    runtime.close()
    runtime.close()
    with pytest.raises(UpstreamError, match="has been unloaded") as caught:
        runtime.forward(request().SerializeToString(), timeout_s=5)
    assert caught.value.code == "UNAVAILABLE"
    assert not runtime.ready()
