"""``remote`` in front of a real MLServer: its dialect, its typed answers, its errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sidecar.errors import ArtifactError, DeadlineError, SidecarError, UpstreamError
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes import remote
from sidecar.runtimes.base import TensorSpec
from tests.peers.server import MLServer
from tests.support.upstream import remote_variant, request

pytestmark = pytest.mark.timeout(400)


def tensor(name: str, datatype: str, shape: list[int]) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with MLServer(tmp_path_factory.mktemp("mlserver")) as running:
        try:
            remote.build(variant(running, "described", connect_timeout_s=90)).close()
        except SidecarError as error:
            raise AssertionError(f"{error}\n{running.log()}") from error
        yield running


def variant(server: MLServer, model: str, datatype: str | None = None, **settings: object):
    if datatype is not None:
        settings["inputs"] = [tensor("x", datatype, [-1, 3])]
        settings["outputs"] = [tensor("y", datatype, [-1, 3])]
    return remote_variant(server.address, model_name=model, dialect="mlserver", **settings)


@pytest.fixture
def build(server: MLServer):
    made = []

    def make(model: str, datatype: str | None = None, **settings: object):
        made.append(remote.build(variant(server, model, datatype, **settings)))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


def test_it_is_described_by_its_metadata(build):
    runtime = build("described")
    assert runtime.ready()
    assert runtime.signature.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert runtime.signature.outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    assert runtime.signature.max_batch_size == 0
    assert runtime.signature.platform == "tests"


def test_a_model_that_says_nothing_must_be_declared(build):
    with pytest.raises(ArtifactError, match=r"does not say its inputs; declare .*`inputs`"):
        build("plain")
    assert build("plain", "INT8").signature.inputs == (TensorSpec("x", "INT8", (-1, 3)),)


def test_an_unknown_model_does_not_become_ready(build):
    with pytest.raises(
        SidecarError, match=r"'nobody' did not become ready within 0\.5 s.*not found"
    ):
        build("nobody", "FP32", connect_timeout_s=0.5)


#: MLServer reads no BF16 at all, and has no typed form for FP16 either.
@pytest.mark.parametrize("datatype", [name for name in BY_NAME if name != "BF16"])
def test_arrays_of_every_datatype_come_back(build, datatype):
    dtype = BY_NAME[datatype].numpy
    if datatype == "BYTES":
        array = np.array([[b"", b"a\0b", b"\xff\xfe"]], dtype=object)
    elif dtype.kind in "iu":
        array = np.array([[np.iinfo(dtype).min, 1, np.iinfo(dtype).max]], dtype)
    else:
        array = np.array([[0, 1, 1.5]]).astype(dtype)
    runtime = build("plain", datatype)
    (answer,) = runtime.infer({"x": array})
    assert answer.dtype == array.dtype
    assert answer.shape == array.shape
    assert answer.tolist() == array.tolist()


def test_bfloat16_is_mlservers_to_refuse(build):
    array = np.zeros((1, 3), BY_NAME["BF16"].numpy)
    with pytest.raises(UpstreamError) as caught:
        build("plain", "BF16").infer({"x": array})
    assert caught.value.code in {"INTERNAL", "INVALID_ARGUMENT", "UNKNOWN"}


def test_forwarded_bytes_are_answered_raw_or_typed_as_they_came(build):
    runtime = build("described")
    raw = request(2, id="a-1").SerializeToString()
    answer = pb.ModelInferResponse.FromString(runtime.forward(raw, timeout_s=10).body)
    assert (answer.id, answer.model_name, answer.model_version) == ("a-1", "described", "v3")
    assert list(answer.raw_output_contents) == [bytes(range(16)) * 2]
    typed = request(1)
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    forwarded = runtime.forward(typed.SerializeToString(), timeout_s=10)
    answer = pb.ModelInferResponse.FromString(forwarded.body)
    assert list(answer.outputs[0].contents.fp32_contents) == [1, 2, 3, 4]


def test_metadata_goes_there_and_comes_back(build):
    metadata = [("x-request-id", "r-7"), ("content-type", "text/html"), ("TE", "trailers")]
    answer = build("described").forward(
        request().SerializeToString(), timeout_s=10, metadata=metadata
    )
    assert ("seen-x-request-id", "r-7") in answer.metadata


def test_streams_come_in_tritons_form(build):
    runtime = build("described")
    bodies = [request(n, id=f"s{n}").SerializeToString() for n in (1, 2, 3)]
    elements = runtime.forward_stream(iter(bodies), timeout_s=10)
    answers = [pb.ModelStreamInferResponse.FromString(element) for element in elements]
    assert [list(a.infer_response.outputs[0].shape) for a in answers] == [[1, 4], [2, 4], [3, 4]]
    assert not any(answer.error_message for answer in answers)


def test_codec_answers_are_read(build):
    runtime = build("affine", "FP64")
    (y,) = runtime.infer({"x": np.array([[0.0, 1.5, -2]])})
    assert y.tolist() == [[1, 4, -3]]


def test_its_errors_keep_their_status_and_words(build):
    runtime = build("affine", "FP32")
    with pytest.raises(UpstreamError, match="x may not be 99") as caught:
        runtime.infer({"x": np.full((1, 3), 99, np.float32)})
    assert caught.value.code == "INVALID_ARGUMENT"
    (y,) = runtime.infer({"x": np.zeros((1, 3), np.float32)})
    assert y.tolist() == [[1, 1, 1]]


def test_a_slow_model_meets_the_deadline(build):
    runtime = build("affine", "FP32", timeout_s=0.3)
    with pytest.raises(DeadlineError, match=r"within 0\.3 s"):
        runtime.infer({"x": np.full((1, 3), 77, np.float32)})


def test_large_tensors_pass(build):
    runtime = build("plain", "FP32")
    array = np.random.default_rng(0).normal(size=(2**19, 3)).astype(np.float32)  # 6 MiB
    (answer,) = runtime.infer({"x": array})
    np.testing.assert_array_equal(answer, array)


def test_mlservers_environment_is_not_ours():
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('mlserver') is not None)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
