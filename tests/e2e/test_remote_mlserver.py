"""``sidecar serve`` in front of a real MLServer, by its own dialect."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import httpx
import numpy as np
import pytest

from tests.e2e import remotes
from tests.e2e.support import Client, Server, fails, floats, request, running, until, write
from tests.peers.server import MLServer

pytestmark = pytest.mark.timeout(400)


def in_front(mlserver: MLServer, name: str, **fields: object) -> dict:
    variant = remotes.remote(mlserver.address, version="1", dialect="mlserver",
                             connect_timeout_s=90)  # fmt: skip
    return {"name": name, "variants": [{**variant, **fields}]}


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLServer]:
    with MLServer(tmp_path_factory.mktemp("mlserver")) as started:
        yield started


@pytest.fixture(scope="module")
def server(mlserver: MLServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Most of its models describe nothing, so that the config says what they take.
    affine = {side: [{"name": name, "datatype": "FP32", "shape": [-1, 3]}]
              for side, name in (("inputs", "x"), ("outputs", "y"))}  # fmt: skip
    tree = [in_front(mlserver, "described"), in_front(mlserver, "affine", **affine)]
    try:
        with running(write(tmp_path_factory.mktemp("sidecar"), tree)) as started:
            yield started
            assert "Traceback" not in started.text
    except AssertionError as error:
        raise AssertionError(f"{error}\n{mlserver.log()}") from error


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.addresses["grpc"]) as made:
        yield made


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.addresses['http']}/v2", timeout=60) as made:
        yield made


X = np.array([[1, 2, 3]], np.float32)


def test_it_is_described_as_ours(client, http):
    metadata = client.call("ModelMetadata", {"name": "described"})
    assert (metadata.name, list(metadata.versions)) == ("described", ["1"])
    [x], [y] = metadata.inputs, metadata.outputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [-1, 4])
    assert (y.name, y.datatype, list(y.shape)) == ("y", "FP32", [-1, 4])
    assert http.get("/models/affine").json()["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    ]


def test_it_is_ready(client, http):
    assert client.call("ServerReady").ready
    assert client.call("ModelReady", {"name": "affine"}).ready
    assert client.health() == "SERVING"
    assert http.get("/health/ready").status_code == 200
    assert http.get("/models/described/ready").status_code == 200


def test_it_answers_over_grpc(client):
    answer = client.call("ModelInfer", request("affine", X, request_id="a-1"))
    assert (answer.model_name, answer.model_version, answer.id) == ("affine", "1", "a-1")
    assert floats(answer) == [3, 5, 7]


def test_it_answers_over_http_in_json_and_binary(http):
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    reply = http.post("/models/affine/infer", json={"inputs": [tensor], "id": "h-1"})
    assert reply.status_code == 200
    assert reply.json()["id"] == "h-1"
    assert reply.json()["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [3.0, 5.0, 7.0]}
    ]
    asked = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    reply = http.post("/models/affine/infer", json=asked)
    cut = int(reply.headers["inference-header-content-length"])
    assert np.frombuffer(reply.content[cut:], np.float32).tolist() == [3, 5, 7]


def test_its_headers_come_back(client):
    body = request("described", np.zeros((1, 4), np.float32)).SerializeToString()
    _, trailing = remotes.raw_call(client, body, metadata=[("x-request-id", "r-1")])
    assert trailing["x-request-id"] == "r-1"
    assert trailing["seen-x-request-id"] == "r-1"  # it got it, and said so


def test_its_errors_keep_their_words(client, http):
    wrong = np.full((1, 3), 99, np.float32)
    with fails(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        client.infer("affine", wrong)
    assert "x may not be 99" in caught[0].details()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [99, 99, 99]}
    reply = http.post("/models/affine/infer", json={"inputs": [tensor]})
    assert reply.status_code == 400
    assert "x may not be 99" in reply.json()["error"]


def test_its_slow_model_meets_our_deadline(client, http):
    slow = np.full((1, 3), 77, np.float32)
    with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
        client.call("ModelInfer", request("affine", slow, parameters={"timeout": 1_000_000}))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [77, 77, 77]}
    late = {"inputs": [tensor], "parameters": {"timeout": 1_000_000}}
    assert http.post("/models/affine/infer", json=late).status_code == 504


def test_its_bare_stream_elements_are_wrapped(client):
    asked = [request("described", np.full((1, 4), n, np.float32)) for n in range(5)]
    got = list(client.stream(iter(asked)))
    assert [floats(one.infer_response) for one in got] == [[float(n)] * 4 for n in range(5)]
    assert {one.infer_response.model_version for one in got} == {"1"}
    assert not any(one.error_message for one in got)


def test_large_tensors_go_both_ways(client):
    array = np.random.default_rng(0).normal(size=(2**20, 4)).astype(np.float32)
    assert client.infer("described", array).raw_output_contents[0] == array.tobytes()


def test_when_it_goes_we_are_not_ready(client, mlserver):
    """The last one: it ends it."""
    mlserver.__exit__()
    until(lambda: not client.call("ServerReady").ready, "not ready")
    assert not client.call("ModelReady", {"name": "affine"}).ready
    with fails(grpc.StatusCode.UNAVAILABLE):
        client.infer("affine", X)
    assert client.call("ServerLive").live
