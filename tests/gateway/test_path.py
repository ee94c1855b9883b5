"""The request's path, in process: what each stage decides, and what is counted and recorded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.errors import (
    CancelledError,
    DeadlineError,
    ExecutionError,
    InvalidRequestError,
    NotFoundError,
)
from sidecar.gateway import path
from sidecar.gateway.core import Gateway
from sidecar.gateway.messages import InferRequest, InferResponse, InputTensor, OutputRequest
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

ROWS = np.array([[1, 2], [3, 4]], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    two = model("mlp", variant("mlp", "1"), variant("mlp", "2"))
    fallen = model("any", variant("any"), variant("any", "1", "fallback", name="spare"))
    cached = model("text", cache=True)
    with serving(configure(folder, two, model("many"), fallen, cached, model("fixed"))) as up:
        yield up


def ask(name: str = "any", rows: Any = ROWS, **fields: Any) -> InferRequest:
    """The request as a transport would hand it over."""
    array = np.ascontiguousarray(rows, np.float32)
    tensor = InputTensor("x", "FP32", array.shape, raw=array.tobytes())
    return InferRequest(name, fields.pop("version", ""), "the id", "r-1", [tensor], **fields)


def serve(gateway: Gateway, asked: InferRequest, **options: Any) -> InferResponse:
    answer: InferResponse = path.infer(gateway, asked, lambda r: (r, 7), **options)
    return answer


def failing(error: Exception) -> Callable[[Any], Any]:
    def fail(_: Any) -> Any:
        raise error

    return fail


def counters(gateway: Gateway, name: str) -> Any:
    """Of the variant that serves a model's default version."""
    _, copy = gateway.registry.find(name, "")
    return gateway.counts(copy.slot)


# --- route, outputs -------------------------------------------------------------------------------


def test_versions(served: Served) -> None:
    assert served.infer(mlp_request()).model_version == "2"
    assert served.infer(mlp_request(model_version="1")).model_version == "1"


def test_ids_are_echoed_and_ours_is_in_the_metadata(served: Served) -> None:
    call = served.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    body = mlp_request(id="body's id").SerializeToString()
    for sent, expected in (("mine-1", "mine-1"), ("x" * 1000, None), ("with space", None)):
        answer, rpc = call.with_call(body, metadata=[("x-request-id", sent)], timeout=60)
        assert pb.ModelInferResponse.FromString(answer).id == "body's id"
        [given] = [v for k, v in rpc.trailing_metadata() if k == "x-request-id"]
        assert given == expected if expected else given not in ("", sent)


def test_outputs_come_in_the_order_asked_for(served: Served) -> None:
    message = request("many", {"b": ROWS, "a": ROWS + 1})
    every = served.infer(message)
    assert [o.name for o in every.outputs] == ["sum", "same", "weight", "total"]
    for name in ("total", "sum", "same"):
        message.outputs.add(name=name)
    answer = served.infer(message)
    assert [o.name for o in answer.outputs] == ["total", "sum", "same"]
    assert output(answer, "total").shape == ()
    assert output(answer, "total") == 10
    assert output(answer, "sum").tolist() == [[3, 5], [7, 9]]
    assert output(answer, "same").tolist() == [[2, 3], [4, 5]]


def test_classification(served: Served) -> None:
    message = mlp_request(rows=2)
    message.outputs.add(name="y").parameters["classification"].int64_param = 3
    answer = served.infer(message)
    scores = output(served.infer(mlp_request(rows=2)), "y")
    assert answer.outputs[0].datatype == "BYTES"
    assert list(answer.outputs[0].shape) == [2, 3]
    best = np.argsort(-scores, axis=1)[:, :3]
    data, position, found = answer.raw_output_contents[0], 0, []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "little")
        found.append(int(data[position + 4 : position + 4 + length].split(b":")[1]))
        position += 4 + length
    assert found == best.ravel().tolist()


def test_shared_memory_in_and_out(served: Served) -> None:
    block = shared_memory.SharedMemory(create=True, size=64)
    try:
        block.buf[:16] = ROWS.tobytes()
        served.call("SystemSharedMemoryRegister", name="r", key=f"/{block.name}", byte_size=64)
        message = pb.ModelInferRequest(model_name="any")
        tensor = message.inputs.add(name="x", datatype="FP32", shape=[2, 2])
        wanted = message.outputs.add(name="y")
        for parameters in (tensor.parameters, wanted.parameters):
            parameters["shared_memory_region"].string_param = "r"
            parameters["shared_memory_byte_size"].int64_param = 16
        wanted.parameters["shared_memory_offset"].int64_param = 32
        answer = served.infer(message)
        assert bytes(block.buf[32:48]) == ROWS.tobytes()
        assert list(answer.raw_output_contents) == [b""]
        assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 16
        wanted.parameters["shared_memory_byte_size"].int64_param = 15
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(message)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "takes 16 bytes" in caught.value.details()
        served.call("SystemSharedMemoryUnregister", name="r")
    finally:
        block.close()
        block.unlink()


# --- deadlines, cancellation ----------------------------------------------------------------------


def test_a_late_request_is_not_executed(served: Served) -> None:
    ran = threading.Event()
    served.put("fixed", lambda _: ran.set())
    late = ask("fixed", np.zeros((2, 3)), deadline_ns=time.monotonic_ns() - 1)
    with pytest.raises(DeadlineError):
        serve(served.gateway, late)
    assert not ran.is_set()
    # It is the model's failure; nobody asked for a model that is unknown.
    assert counters(served.gateway, "fixed").durations["fail"][0] == 1
    assert served.gateway.page.server_counters()["unknown_model"] == 0


def test_a_request_whose_caller_is_gone_is_not_executed(served: Served) -> None:
    ran = threading.Event()
    served.put("fixed", lambda _: ran.set())
    with pytest.raises(CancelledError):
        serve(served.gateway, ask("fixed", np.zeros((2, 3))), is_cancelled=lambda: True)
    assert not ran.is_set()
    assert counters(served.gateway, "fixed").durations["cancel"][0] == 1


# --- fallback -------------------------------------------------------------------------------------


def test_the_fallback_answers_for_a_variant_that_fails(served: Served) -> None:
    served.put("any", failing(ExecutionError("out of memory")))
    answer = serve(served.gateway, ask())
    assert answer.parameters == {"sidecar_fallback": "1/spare"}
    assert answer.outputs[0].array.tolist() == ROWS.tolist()
    assert counters(served.gateway, "any").counters["fallbacks"] == 1
    over_grpc = served.infer(request("any", {"x": ROWS}))
    assert over_grpc.parameters["sidecar_fallback"].string_param == "1/spare"


def test_the_fallback_answers_for_a_variant_with_a_bug(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Its traceback goes to the log, since no client will complain."""
    served.put("any", failing(ZeroDivisionError("in the runtime")))
    with caplog.at_level(logging.WARNING, "sidecar"):
        answer = serve(served.gateway, ask())
    assert answer.parameters == {"sidecar_fallback": "1/spare"}
    assert "Traceback" in caplog.text
    assert "in the runtime" in caplog.text


def test_the_fallback_does_not_answer_what_is_the_requests_fault(served: Served) -> None:
    served.put("any", failing(InvalidRequestError("index out of range")))
    with pytest.raises(InvalidRequestError, match="index out of range"):
        serve(served.gateway, ask())
    served.put("any", failing(ExecutionError("failed")))
    with pytest.raises(InvalidRequestError, match="2 dimensions"):
        serve(served.gateway, ask(rows=[1, 2]))
    assert counters(served.gateway, "any").counters["fallbacks"] == 0


def test_a_fallback_that_fails_too(folder: Path) -> None:
    """The client reads why; it is one failed request, of the variant that should have served."""
    twice = model("lookup", variant("lookup"), variant("lookup", "1", "fallback", name="spare"))
    with serving(configure(folder, twice)) as up:
        with pytest.raises(grpc.RpcError) as caught:
            up.infer(request("lookup", {"i": np.array([99], np.int64)}))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "99" in caught.value.details()
        counts = counters(up.gateway, "lookup")
        assert counts.counters["fallbacks"] == 1
        assert counts.durations["fail"][0] == 1
        answer = up.infer(request("lookup", {"i": np.array([1], np.int64)}))
        assert not answer.parameters


def test_the_fallback_answers_for_a_variant_that_is_slow(folder: Path) -> None:
    slow = model(
        "any", variant("any"), variant("any", "1", "fallback", name="spare"),
        fallback={"after_ms": 50},
    )  # fmt: skip
    go_on = threading.Event()

    def hang(inputs: Any) -> Any:
        go_on.wait(20)
        return [inputs["x"]]

    with serving(configure(folder, slow)) as up:
        up.put("any", hang)
        try:
            answer = serve(up.gateway, ask())
            assert answer.parameters == {"sidecar_fallback": "1/spare"}
            late = ask(deadline_ns=time.monotonic_ns() + 10_000_000)
            with pytest.raises(DeadlineError):  # the fallback's answer would be late as well
                serve(up.gateway, late)
        finally:
            go_on.set()
        deadline = time.monotonic() + 60
        while counters(up.gateway, "any").counters["late_answers"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_who_names_a_version_gets_that_version(folder: Path) -> None:
    other = model("any", variant("any", "2"), variant("any", "1", "fallback", name="old"))
    with serving(configure(folder, other)) as up:
        up.put("any", failing(ExecutionError("no")))
        assert serve(up.gateway, ask()).model_version == "1"
        with pytest.raises(ExecutionError):
            serve(up.gateway, ask(version="2"))


# --- cache ----------------------------------------------------------------------------------------


def test_a_repeated_request_is_answered_from_the_cache(served: Served) -> None:
    runs: list[Any] = []

    def echo(inputs: Any) -> Any:
        runs.append(1)
        return [inputs["x"].copy()]

    served.put("text", echo)
    texts = np.array([b"a", b"", b"c"], object)
    message = request("text", {"x": texts})
    answers = [served.infer(message) for _ in range(3)]
    message.raw_input_contents[0] = b"\1\0\0\0b" + message.raw_input_contents[0][5:]
    other = served.infer(message)
    assert len(runs) == 2
    assert answers[0] == answers[1] == answers[2]
    assert other.raw_output_contents[0][4:5] == b"b"
    counts = counters(served.gateway, "text")
    assert counts.durations["cache_hit"][0] == 2
    assert counts.durations["cache_miss"][0] == 2
    assert counts.counters["executions"] == 2
    assert counts.durations["success"][0] == 4


# --- record ---------------------------------------------------------------------------------------


def test_what_is_recorded_of_an_answer(served: Served) -> None:
    gateway = served.gateway
    asked = ask(nbytes=100, traceparent="00-a-b-01", parse_ns=5)
    serve(gateway, asked)
    [record] = gateway.timings.take(10)
    assert (record.request_id, record.traceparent) == ("r-1", "00-a-b-01")
    assert (record.variant, record.outcome) == ("any:1/onnx", "OK")
    assert (record.bytes_in, record.bytes_out) == (100, 7)
    assert record.end_ns >= record.start_ns
    assert record.timing.decode_ns > 5
    assert record.timing.execute_ns > 0
    assert record.timing.rows == 2
    counts = counters(gateway, "any")
    assert counts.durations["success"][0] == 1
    assert counts.counters["inferences"] == 2  # rows


def test_what_is_recorded_of_failures(served: Served) -> None:
    """Also that a name of megabytes is not kept: the buffer holds thousands of records."""
    gateway = served.gateway
    with pytest.raises(NotFoundError):
        serve(gateway, ask("n" * 2_000_000))
    with pytest.raises(NotFoundError):
        serve(gateway, ask("mlp", version="9"))
    with pytest.raises(InvalidRequestError):
        serve(gateway, ask(rows=[1]))
    served.put("fixed", failing(KeyError("a bug")))
    with pytest.raises(KeyError):
        serve(gateway, ask("fixed", np.zeros((2, 3))))
    records = gateway.timings.take(10)
    assert [r.outcome for r in records] == [
        "NotFoundError", "NotFoundError", "InvalidRequestError", "KeyError",
    ]  # fmt: skip
    assert len(records[0].variant) == 256
    assert gateway.page.server_counters()["unknown_model"] == 2
    assert counters(gateway, "any").durations["fail"][0] == 1


def test_a_request_under_way_survives_an_unload(served: Served) -> None:
    """It ends on the copy that it began with."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(inputs: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return [inputs["x"]]

    served.put("fixed", wait)
    answers: list[InferResponse] = []
    thread = threading.Thread(
        target=lambda: answers.append(serve(served.gateway, ask("fixed", np.ones((2, 3)))))
    )
    thread.start()
    assert entered.wait(20)
    served.call("RepositoryModelUnload", model_name="fixed")
    with pytest.raises(NotFoundError, match="not loaded"):
        serve(served.gateway, ask("fixed", np.ones((2, 3))))
    go_on.set()
    thread.join(20)
    assert answers[0].outputs[0].array.tolist() == [[1] * 3] * 2
    served.call("RepositoryModelLoad", model_name="fixed")
    serve(served.gateway, ask("fixed", np.ones((2, 3))))


def test_the_requests_outputs_are_not_changed(served: Served) -> None:
    """The path hands a copy's own lists around; a request must not write into them."""
    wanted = [OutputRequest("y")]
    serve(served.gateway, ask(outputs=wanted))
    assert wanted == [OutputRequest("y")]
    assert served.gateway.registry.find("any", "")[1].output_names == ["y"]
