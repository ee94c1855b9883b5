"""HTTP in front of the real core and a real ONNX model."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from multiprocessing import shared_memory
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, save

from sidecar.config import parse
from sidecar.gateway.core import Gateway
from sidecar.gateway.http import HttpServer

INFER = "/v2/models/add/infer"


def save_add(path: Any) -> None:
    """``SUM = A + B``, FP32, any number of rows of 3."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("A", "B")
    ]
    result = helper.make_tensor_value_info("SUM", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(
        [helper.make_node("Add", ["A", "B"], ["SUM"])], "add", tensors, [result]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, str(path))


def save_negate(path: Any) -> None:
    """``Y = -X``, FP32, any number of rows of 3: one input, so that a raw body will do."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["X"], ["Y"])],
        "negate",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    save(model, str(path))


@pytest.fixture(scope="module")
def client(tmp_path_factory: Any) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("models")
    save_add(folder / "add.onnx")
    save_negate(folder / "negate.onnx")
    models = [
        {
            "name": name,
            "variants": [
                {"name": "onnx", "version": "2", "roles": ["serving"],
                 "runtime": {"kind": "onnxruntime", "path": f"{name}.onnx"}},
            ],
        }
        for name in ("add", "negate")
    ]  # fmt: skip
    tree = {"models": models, "gateway": {"http": {"address": "127.0.0.1:0"}}}
    config = parse(tree, base_dir=folder, check_files=True)
    gateway = Gateway(config)
    gateway.load_all()
    server = HttpServer(config.gateway, gateway)
    try:
        with httpx.Client(base_url=f"http://{server.start()}", timeout=60) as client:
            yield client
    finally:
        server.stop(5)
        gateway.close()
    assert gateway.admission.idle()
    assert gateway.admission.bytes == 0


def body(a: Any, b: Any, **extra: Any) -> dict[str, Any]:
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [len(rows), 3], "data": rows}
        for name, rows in (("A", a), ("B", b))
    ]
    return {"inputs": tensors} | extra


def test_json(client: httpx.Client) -> None:
    response = client.post(INFER, json=body([[1, 2, 3]], [[10, 20, 30]], id="i"))
    assert response.json() == {
        "model_name": "add", "model_version": "2", "id": "i",
        "outputs": [{"name": "SUM", "datatype": "FP32", "shape": [1, 3], "data": [11, 22, 33]}],
    }  # fmt: skip


def test_binary_both_ways_and_statistics(client: httpx.Client) -> None:
    before = client.get("/v2/models/add/stats").json()["model_stats"][0]
    a = np.random.default_rng(0).random((1000, 3), np.float32)
    tensors = [
        {"name": name, "datatype": "FP32", "shape": [1000, 3],
         "parameters": {"binary_data_size": a.nbytes}} for name in ("A", "B")
    ]  # fmt: skip
    outputs = [{"name": "SUM", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    response = client.post(
        INFER, content=head + a.tobytes() + a.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )  # fmt: skip
    split = int(response.headers["Inference-Header-Content-Length"])
    answer = np.frombuffer(response.content[split:], "<f4").reshape(1000, 3)
    np.testing.assert_array_equal(answer, a + a)
    after = client.get("/v2/models/add/stats").json()["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 1000
    success = [model["inference_stats"]["success"] for model in (before, after)]
    assert success[1]["count"] - success[0]["count"] == 1
    assert success[1]["ns"] > success[0]["ns"]
    encode = [model["inference_stats"]["compute_output"]["ns"] for model in (before, after)]
    assert encode[1] > encode[0]  # encoding is a stage with a time


def test_a_raw_body_takes_its_shape_from_the_model(client: httpx.Client) -> None:
    url = "/v2/models/negate/infer"
    headers = {"Inference-Header-Content-Length": "0"}
    response = client.post(url, content=struct.pack("<6f", 1, 2, 3, 4, 5, 6), headers=headers)
    split = int(response.headers["Inference-Header-Content-Length"])
    [output] = json.loads(response.content[:split])["outputs"]
    assert output["shape"] == [2, 3]
    assert struct.unpack("<6f", response.content[split:]) == (-1, -2, -3, -4, -5, -6)
    for wrong in (b"\x00" * 7, b"\x00" * 4):
        response = client.post(url, content=wrong, headers=headers)
        assert (response.status_code, "row" in response.json()["error"]) == (400, True)


def test_shared_memory(client: httpx.Client) -> None:
    a = np.arange(6, dtype="<f4")
    region = shared_memory.SharedMemory(create=True, size=96)
    try:
        region.buf[:24] = a.tobytes()
        url = "/v2/systemsharedmemory/region/r"
        register = {"key": f"/{region.name}", "byte_size": 96}
        assert client.post(f"{url}/register", json=register).status_code == 200
        [status] = client.get("/v2/systemsharedmemory/status").json()
        assert (status["name"], status["byte_size"]) == ("r", 96)
        at = {"shared_memory_region": "r", "shared_memory_byte_size": 24}
        request = {
            "inputs": [{"name": name, "datatype": "FP32", "shape": [2, 3], "parameters": at}
                       for name in ("A", "B")],
            "outputs": [{"name": "SUM", "parameters": at | {"shared_memory_offset": 48}}],
        }  # fmt: skip
        response = client.post(INFER, json=request)
        assert response.status_code == 200, response.text
        assert "data" not in response.json()["outputs"][0]
        np.testing.assert_array_equal(np.frombuffer(bytes(region.buf[48:72]), "<f4"), a + a)
        assert client.post(f"{url}/unregister").status_code == 200
        assert client.post(INFER, json=request).status_code in {400, 404}
    finally:
        region.close()
        region.unlink()


def test_classification(client: httpx.Client) -> None:
    outputs = [{"name": "SUM", "parameters": {"classification": 2}}]
    response = client.post(INFER, json=body([[1, 5, 3]], [[0, 0, 0]], outputs=outputs))
    [output] = response.json()["outputs"]
    assert output["datatype"] == "BYTES"
    assert [text.split(":")[1] for text in output["data"]] == ["1", "2"]


@pytest.mark.parametrize(
    ("request_body", "status", "part"),
    [
        (body([[1, 2, 3]], [[1, 2, 3]], outputs=[{"name": "NOPE"}]), 400, "NOPE"),
        ({"inputs": body([[1, 2, 3]], [[1, 2, 3]])["inputs"][:1]}, 400, "'B'"),
        (body([[1, 2, 3]], [[1, 2, 3]], parameters={"triton_x": 1}), 400, "triton_x"),
        (body([[1, 2, 3]], [[1, 2, 3]], parameters={"timeout": -1}), 400, "timeout"),
        ({"inputs": [{"name": "A", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]}]},
         400, "'A'"),
        ({"inputs": [{"name": "A", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]},
         400, "'A'"),
        ({"inputs": [{"name": "A", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3]}]},
         400, "'A'"),
        ({"inputs": [{"name": "A", "datatype": "FP32", "shape": [2**62, 3], "data": [1]}]},
         400, "'A'"),
        ({"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]},
         400, "'X'"),
    ],
)  # fmt: skip
def test_what_contradicts_the_model(
    client: httpx.Client, request_body: dict[str, Any], status: int, part: str
) -> None:
    response = client.post(INFER, json=request_body)
    assert response.status_code == status, response.text
    assert part in response.json()["error"]


def test_metadata_config_and_repository(client: httpx.Client) -> None:
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/add").json()
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["A", "B"]
    assert metadata["inputs"][0]["shape"] == [-1, 3]
    config = client.get("/v2/models/add/config").json()
    assert config["max_batch_size"] > 0
    assert config["input"][0]["dims"] == [3]
    assert client.get("/v2/models/nope").status_code == 404
    index = client.post("/v2/repository/index").json()
    assert {model["name"]: model["state"] for model in index} == {"add": "READY", "negate": "READY"}
    assert client.post("/v2/repository/models/negate/unload").status_code == 200
    assert client.get("/v2/models/negate/ready").status_code >= 400
    assert client.get("/v2/models/add/ready").status_code == 200
    assert client.post("/v2/repository/models/negate/load").status_code == 200
    deadline = time.monotonic() + 60
    while client.get("/v2/models/negate/ready").status_code != 200:
        assert time.monotonic() < deadline
    assert client.post("/v2/repository/models/nope/load").status_code == 404


def test_settings(client: httpx.Client) -> None:
    trace = client.get("/v2/trace/setting").json()
    assert trace["trace_level"] == ["OFF"]
    changed = client.post("/v2/trace/setting", json={"trace_rate": "7"}).json()
    assert changed["trace_rate"] == "7"
    logs = client.get("/v2/logging").json()
    assert isinstance(logs["log_info"], bool)
    assert client.post("/v2/logging", json={"log_nonsense": True}).status_code == 400
