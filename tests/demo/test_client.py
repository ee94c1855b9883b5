"""Both transports against a real sidecar, and against servers that misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from sidecar.demo.client import CallFailedError, Client, GrpcClient, HttpClient
from sidecar.demo.process import LOG_FILE, ServeProcess, free_addresses
from tests.demo.conftest import Trained

CONFIG = """\
models:
  - name: digits
    variants:
      - name: onnx
        version: "2"
        roles: [serving]
        runtime: {{kind: onnxruntime, path: {path}}}
gateway:
  grpc: {{address: "{grpc}"}}
  http: {{address: "{http}"}}
  drain: {{delay_s: 0, timeout_s: 10}}
"""
KINDS = ["grpc", "http", "http-json"]


@pytest.fixture(scope="module")
def addresses(
    trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    folder: Path = tmp_path_factory.mktemp("client")
    found = dict(zip(("grpc", "http"), free_addresses(2), strict=True))
    config = folder / "one.yaml"
    config.write_text(CONFIG.format(path=trained.folder / "digits-2.onnx", **found))
    with ServeProcess(config, folder / LOG_FILE) as server:

        def is_ready() -> bool:
            with GrpcClient(found["grpc"]) as grpc, HttpClient(found["http"]) as http:
                return http.ready() and grpc.ready()

        server.wait_ready(is_ready)
        yield found


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, addresses: dict[str, str]) -> Iterator[Client]:
    makers: dict[str, Callable[[], Client]] = {
        "grpc": partial(GrpcClient, addresses["grpc"]),
        "http": partial(HttpClient, addresses["http"]),
        "http-json": partial(HttpClient, addresses["http"], binary=False),
    }
    made = makers[request.param]()
    yield made
    made.close()
    made.close()


def test_metadata_and_answers_are_the_same_on_every_transport(client: Client, trained: Trained):
    assert client.ready()
    info = client.metadata("digits", "2")
    assert (info.name, info.versions, info.platform) == ("digits", ("2",), "onnxruntime_onnx")
    assert [(t.name, t.datatype, t.shape) for t in info.inputs] == [
        ("image", "FP32", (-1, 1, 8, 8))
    ]
    hold_out = trained.prepared.hold_out
    answer = client.infer(
        "digits", {"image": hold_out.images}, version="2", outputs=["scores"], request_id="all"
    )
    assert (answer.model_name, answer.model_version) == ("digits", "2")
    scores = answer.outputs["scores"]
    assert scores.dtype == np.float32
    assert scores.shape == (len(hold_out.labels), 10)
    assert (scores.argmax(axis=1) == hold_out.labels).mean() >= 0.97


def test_what_the_server_refuses_comes_with_its_code(client: Client):
    image = np.zeros((1, 1, 8, 8), np.float32)
    with pytest.raises(CallFailedError, match="nothing-of-this-name") as caught:
        client.infer("nothing-of-this-name", {"image": image})
    assert caught.value.code in {"NOT_FOUND", "HTTP 404"}
    with pytest.raises(CallFailedError, match="FP32") as caught:
        client.infer("digits", {"image": image.astype(np.float64)})
    assert caught.value.code in {"INVALID_ARGUMENT", "HTTP 400"}
    with pytest.raises(CallFailedError):
        client.metadata("nothing-of-this-name")
    assert client.infer("digits", {"image": image}).outputs  # the connection is still good


def test_statistics_count_what_was_sent(addresses: dict[str, str]):
    with GrpcClient(addresses["grpc"]) as client:
        before = client.statistics("digits", "2")[0].inference_stats.success.count
        for _ in range(5):
            client.infer("digits", {"image": np.zeros((1, 1, 8, 8), np.float32)})
        after = client.statistics("digits", "2")[0].inference_stats.success.count
    assert after - before == 5


def test_nobody_there():
    grpc_address, http_address = free_addresses(2)
    image = {"image": np.zeros((1, 1, 8, 8), np.float32)}
    with HttpClient(http_address) as client:
        assert not client.ready()
        with pytest.raises(CallFailedError) as caught:
            client.infer("digits", image)
        assert caught.value.code == "UNREACHABLE"
    with GrpcClient(grpc_address) as client:
        assert not client.ready()
        with pytest.raises(CallFailedError) as caught:
            client.infer("digits", image)
        assert caught.value.code == "UNAVAILABLE"


class Answers(BaseHTTPRequestHandler):
    """Answers whatever it is asked with the server's ``body``, and drops the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.rfile.read(length)
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)
        self.close_connection = True  # without saying so, as a server with an idle limit does

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.requests, server.body = 0, b""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address_of(server: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{server.server_address[1]}"


def test_a_dropped_connection_is_made_again(odd_server: ThreadingHTTPServer):
    text = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["é", ""]}
    odd_server.body = json.dumps({"model_name": "m", "outputs": [text]}).encode()
    with HttpClient(address_of(odd_server)) as client:
        for _ in range(3):
            outputs = client.infer("m", {"words": np.array(["a", "bc"])}).outputs
            assert outputs["text"].tolist() == ["é".encode(), b""]
    assert odd_server.requests == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"outputs": []}',
        b'{"model_name": "m", "outputs": [{"name": "a"}]}',
        b'{"model_name":"m","outputs":[{"name":"a","datatype":"FP99","shape":[1],"data":[1]}]}',
        b'{"model_name":"m","outputs":[{"name":"a","datatype":"FP32","shape":[9],"data":[1]}]}',
        b'{"model_name":"m","outputs":[{"name":"a","datatype":"FP32","shape":[1],'
        b'"parameters":{"binary_data_size":4}}]}',
    ],
)
def test_a_malformed_answer_is_an_error_of_its_own(odd_server: ThreadingHTTPServer, body: bytes):
    odd_server.body = body
    with HttpClient(address_of(odd_server)) as client, pytest.raises(CallFailedError) as caught:
        client.infer("m", {"a": np.zeros(1)})
    assert caught.value.code == "INTERNAL"
