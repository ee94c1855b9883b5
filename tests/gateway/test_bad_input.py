"""Bad input over a real socket: right code, a text that helps, and the next request is served."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.gateway.served import (
    Served,
    configure,
    make_models,
    mlp_request,
    model,
    output,
    request,
    serving,
    variant,
)
from tests.support.models import mlp_expected

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
#: What no client may see: paths, Python, and the C++ sources of a library.
LEAK = re.compile(r"Traceback|File \"|\.py\b|(?<![\w.'])/\w+/|\.(cc|cpp|h):\d|0x[0-9a-f]{6,}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("secret-folder")
    make_models(folder)
    two = model("mlp", variant("mlp", "1"), variant("mlp", "2"))
    others = [model(name) for name in ("lookup", "many", "fixed", "any", "text")]
    with serving(configure(folder, two, *others, grpc={"max_message_bytes": 2**20})) as up:
        yield up


def refused(served: Served, body: bytes | pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """Code and text of a refusal; after it, the same connection answers."""
    raw = body if isinstance(body, bytes) else body.SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        served.infer_bytes(raw)
    good = served.infer(mlp_request(id="next"))
    assert good.id == "next"
    x = np.arange(32, dtype=np.float32).reshape(1, 32) / 100
    np.testing.assert_allclose(output(good, "y"), mlp_expected(x), rtol=1e-5, atol=1e-5)
    code, text = caught.value.code(), caught.value.details()
    assert not LEAK.search(text), text
    assert "secret-folder" not in text
    return code, text


def changed(change: Any, rows: int = 1) -> pb.ModelInferRequest:
    message = mlp_request(rows)
    change(message)
    return message


def lone(name: str, shape: list[int], raw: bytes, datatype: str = "FP32") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=name)
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    message.raw_input_contents.append(raw)
    return message


def set_shape(*shape: int) -> Any:
    def change(message: pb.ModelInferRequest) -> None:
        message.inputs[0].shape[:] = shape

    return change


def typed(message: pb.ModelInferRequest) -> None:
    message.inputs[0].contents.fp32_contents.extend([0.0] * 32)


def parameter(name: str, **choice: Any) -> Any:
    def change(message: pb.ModelInferRequest) -> None:
        message.parameters[name].SetInParent()
        for field, value in choice.items():
            setattr(message.parameters[name], field, value)

    return change


def region(name: str) -> Any:
    def change(message: pb.ModelInferRequest) -> None:
        del message.raw_input_contents[:]
        message.inputs[0].parameters["shared_memory_region"].string_param = name
        message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 128

    return change


CASES: list[tuple[str, Any, grpc.StatusCode, list[str]]] = [
    ("unknown model", request("nope", {}), NOT_FOUND, ["'nope'", "'mlp'", "'many'"]),
    ("no model", pb.ModelInferRequest(), INVALID, ["names no model"]),
    ("unknown version", mlp_request(model_version="7"), NOT_FOUND, ["'7'", "1, 2"]),
    ("unknown input", changed(lambda m: setattr(m.inputs[0], "name", "z")), INVALID,
     ["'z'", "'x'"]),
    ("unknown output", changed(lambda m: m.outputs.add(name="z")), INVALID, ["'z'", "'y'"]),
    ("an output twice", changed(lambda m: [m.outputs.add(name="y") for _ in "12"]), INVALID,
     ["'y'", "twice"]),
    ("no input", pb.ModelInferRequest(model_name="mlp"), INVALID, ["'mlp'", "'x'"]),
    ("wrong dtype", changed(lambda m: setattr(m.inputs[0], "datatype", "INT32")), INVALID,
     ["'x' is FP32, not INT32"]),
    ("unknown dtype", changed(lambda m: setattr(m.inputs[0], "datatype", "F32")), INVALID,
     ["'F32'", "FP32"]),
    ("wrong rank", changed(set_shape(32)), INVALID, ["'x'", "2 dimensions", "[32]"]),
    ("wrong dimension", changed(set_shape(2, 16)), INVALID, ["[-1, 32]", "[2, 16]"]),
    ("wrong dimension of a fixed shape", lone("fixed", [3, 2], bytes(24)), INVALID,
     ["[2, 3]", "[3, 2]"]),
    ("wrong byte count", changed(set_shape(2, 32)), INVALID, ["256 bytes", "gives 128"]),
    ("raw and typed", changed(typed), INVALID, ["'x'", "one form"]),
    ("negative shape", lone("any", [-1, -1], bytes(4)), INVALID, ["'x'", "[-1, -1]"]),
    ("negative and zero", lone("any", [0, -5], b""), INVALID, ["'x'", "[0, -5]"]),
    ("enormous shape", lone("any", [2**62, 2**62], b""), INVALID, ["'x'"]),
    ("enormous and empty shape", lone("any", [0, 2**62], b""), INVALID, ["'x'", "enormous"]),
    ("a text with a lying length", lone("text", [1], b"\xff\0\0\0ab", "BYTES"), INVALID,
     ["'x'", "claims 255 bytes"]),
    ("a text that is none", lone("text", [1], b"\1\0\0\0\xff", "BYTES"), INVALID,
     ["'x'", "UTF-8"]),
    ("unknown parameter", changed(parameter("triton_x", int64_param=1)), INVALID, ["'triton_x'"]),
    ("parameter of a wrong type", changed(parameter("timeout", string_param="1s")), INVALID,
     ["'timeout'", "microseconds"]),
    ("parameter without a value", changed(parameter("p")), INVALID, ["'p'"]),
    ("unknown region", changed(region("r")), NOT_FOUND, ["'r'"]),
    ("too many rows", mlp_request(1025), INVALID, ["1025 rows", "1024"]),
    ("no protobuf", b"\xff\xff\xff", INVALID, ["not a ModelInferRequest"]),
    ("protobuf cut short", mlp_request().SerializeToString()[:-1], INVALID,
     ["not a ModelInferRequest"]),
    ("a long one cut short", mlp_request(1000).SerializeToString()[:-1], INVALID,
     ["not a ModelInferRequest", "cut short"]),
    ("a name that is no text", b"\x0a\x01\xff", INVALID, ["not a ModelInferRequest"]),
    ("a message over the limit", bytes(2**20 + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, ["larger"]),
    ("a name of 0.5 MiB", pb.ModelInferRequest(model_name="字" * 170_000), NOT_FOUND, ["字…"]),
    ("a million dimensions", lone("any", [1] * 1_000_000, b""), INVALID, ["2 dimensions"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_refusals(served: Served, case: Any) -> None:
    _, body, code, parts = case
    got, text = refused(served, body)
    assert got == code, text
    for part in parts:
        assert part in text


def test_nan_and_infinity_are_data(served: Served) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1.5]], np.float32)
    answer = served.infer(request("any", {"x": x}))
    assert output(answer, "y").tobytes() == x.tobytes()
    x = np.full((1, 32), np.nan, np.float32)
    assert np.isnan(output(served.infer(request("mlp", {"x": x})), "y")).all()


def test_empty_tensors_are_served(served: Served) -> None:
    answer = served.infer(request("any", {"x": np.zeros((0, 7), np.float32)}))
    assert output(answer, "y").shape == (0, 7)
    assert output(served.infer(mlp_request(0)), "y").shape == (0, 10)


def test_a_model_that_fails_says_why(served: Served) -> None:
    """ONNX Runtime's own words, without the places in its source."""
    good = request("lookup", {"i": np.array([3], np.int64)})
    assert output(served.infer(good), "row").tolist() == [[6, 7]]
    code, text = refused(served, request("lookup", {"i": np.array([99], np.int64)}))
    assert code == grpc.StatusCode.INTERNAL
    assert "failed on this input" in text
    assert "99" in text
    assert output(served.infer(good), "row").tolist() == [[6, 7]]


def test_a_bug_tells_nothing_to_the_client_and_all_to_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> Any:
        message = "cannot read /secret-folder/weights.bin"
        raise RuntimeError(message)

    served.put("fixed", fail)
    with caplog.at_level(logging.ERROR, "sidecar"):
        code, text = refused(served, lone("fixed", [2, 3], bytes(24)))
    assert code == grpc.StatusCode.INTERNAL
    assert text.startswith("internal error")
    assert "weights" not in text
    [record] = [r for r in caplog.records if r.exc_info]
    assert "weights.bin" in str(record.exc_info)
    assert "weights.bin" in caplog.text
    assert "Traceback" in caplog.text


def test_a_runtime_that_breaks_its_promise(served: Served) -> None:
    """Too few outputs are a bug of ours, not an answer."""
    served.put("any", lambda _: [])
    code, text = refused(served, lone("any", [1, 1], bytes(4)))
    assert (code, text[:14]) == (grpc.StatusCode.INTERNAL, "internal error")


def test_timeouts_of_any_size(served: Served) -> None:
    """Centuries are no deadline; a lock could not wait for so long."""
    for microseconds in (1 << 62, 10**17, 10**7, 0):
        message = changed(parameter("timeout", int64_param=microseconds))
        assert served.infer(message).outputs[0].name == "y"
    message = changed(parameter("timeout", uint64_param=2**64 - 1))
    assert served.infer(message).outputs[0].name == "y"


def test_names_of_control_calls(served: Served) -> None:
    for method, fields in (
        ("ModelMetadata", {"name": "nope"}),
        ("ModelConfig", {"name": "nope"}),
        ("ModelStatistics", {"name": "nope"}),
        ("RepositoryModelLoad", {"model_name": "nope"}),
        ("RepositoryModelUnload", {"model_name": "nope"}),
        ("ModelMetadata", {"name": "mlp", "version": "9"}),
        ("SystemSharedMemoryStatus", {"name": "nope"}),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            served.call(method, **fields)
        assert caught.value.code() == NOT_FOUND, method
        assert not LEAK.search(caught.value.details())
    assert not served.call("ModelReady", name="nope").ready


@pytest.mark.parametrize("method", ["ModelMetadata", "RepositoryModelLoad", "TraceSetting"])
def test_control_calls_that_are_no_protobuf(served: Served, method: str) -> None:
    call = served.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff", timeout=60)
    assert caught.value.code() == INVALID
    assert f"not a {method}Request" in caught.value.details()


def test_a_method_that_does_not_exist(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.channel.unary_unary("/inference.GRPCInferenceService/Nope")(b"", timeout=60)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
