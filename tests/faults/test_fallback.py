"""The serving variant fails, is slow, or hangs: the fallback answers, and says so."""

from __future__ import annotations

import time

import grpc
import httpx
import pytest

from tests.e2e.support import (
    HELD,
    Client,
    Sleeper,
    fails,
    floats,
    onnx_times,
    request,
    running,
    until,
    variant,
    write,
)

#: In milliseconds; the sleeper takes until it is let go, or no time at all.
AFTER_MS = 1000


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory):
    return Sleeper(tmp_path_factory.mktemp("fallback"))


@pytest.fixture(scope="module")
def server(sleeper):
    """Version 2 (y = 2x, or what the sleeper does) is served, version 1 (y = 10x) falls in."""
    fallback = onnx_times(sleeper.folder, 10, "fallback.onnx")
    other = onnx_times(sleeper.folder, 7, "other.onnx")

    def model(name: str, **settings) -> dict:
        old = variant("onnx", fallback, version="1", roles=("serving", "fallback"))
        return {"name": name, "variants": [old, sleeper.variant(name, version="2")], **settings}

    tree = [
        model("failing"),
        model("slow", fallback={"after_ms": AFTER_MS}),
        model("hanging", fallback={"after_ms": AFTER_MS}, batching={"max_size": 4}),
        {"name": "other", "variants": [variant("onnx", other)]},
    ]
    config = write(sleeper.folder, tree, pool={"running": 2, "threads": 64})
    with running(config) as started:
        yield started
        started.signal()
        assert started.wait() == 0
        assert "Traceback" not in started.text


@pytest.fixture(scope="module")
def client(server):
    with Client(server.addresses["grpc"]) as made:
        yield made


def by(response) -> tuple[str, str]:
    """Which version answered, and which variant it says fell in."""
    return response.model_version, response.parameters["sidecar_fallback"].string_param


def test_serving_answers_while_it_can(client):
    answer = client.infer("failing", 1)
    assert floats(answer) == [2.0]
    assert answer.model_version == "2"
    assert "sidecar_fallback" not in answer.parameters


def test_a_failure_of_serving_is_answered_by_the_fallback(server, client):
    answer = client.infer("failing", -3)
    assert floats(answer) == [-30.0]
    assert by(answer) == ("1", "1/onnx")
    url = f"http://{server.addresses['http']}/v2/models/failing/infer"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [-3]}
    over_http = httpx.post(url, json={"inputs": [tensor]}, timeout=60).json()
    assert over_http["parameters"]["sidecar_fallback"] == "1/onnx"
    assert over_http["outputs"][0]["data"] == [-30]
    [element] = client.stream(iter([request("failing", -3)]))
    assert by(element.infer_response) == ("1", "1/onnx")


def test_a_version_that_was_named_is_never_answered_by_another(client):
    with fails(grpc.StatusCode.INTERNAL):
        client.call("ModelInfer", request("failing", -3, version="2"))
    answer = client.call("ModelInfer", request("failing", -3, version="1"))
    assert (answer.model_version, floats(answer)) == ("1", [-30.0])
    assert "sidecar_fallback" not in answer.parameters  # it was asked for
    with fails(grpc.StatusCode.NOT_FOUND):
        client.call("ModelInfer", request("failing", 1, version="3"))


def test_a_wrong_request_is_wrong_for_the_fallback_too(client):
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        client.call("ModelInfer", request("failing", -3, name="z"))


def test_who_answered_is_who_is_counted(client):
    before = {v: client.statistics("failing", v).inference_stats for v in ("1", "2")}
    client.infer("failing", -5)
    after = until(
        lambda: (
            (found := client.statistics("failing", "1").inference_stats).success.count
            == before["1"].success.count + 1
            and found
        ),
        "the fallback's answer is counted",
    )
    assert after.fail.count == before["1"].fail.count
    serving = client.statistics("failing", "2").inference_stats
    assert serving.success.count == before["2"].success.count


def test_serving_that_is_slow_is_not_waited_for(client, sleeper):
    with sleeper.holding("slow"):
        began = time.monotonic()
        answer = client.infer("slow", HELD)
        assert time.monotonic() - began >= AFTER_MS / 1e3
        assert by(answer) == ("1", "1/onnx")
        assert floats(answer) == [10.0 * HELD]
    answer = client.infer("slow", 1)
    assert (answer.model_version, floats(answer)) == ("2", [2.0])


def test_serving_that_hangs_fills_its_bulkhead_and_no_more(client, sleeper):
    """Eight may hang at one time; the rest are answered at once, and other models do not notice."""
    executed = len(sleeper.executed("hanging"))
    with sleeper.holding("hanging"):
        calls = [
            client.stub("ModelInfer").future(request("hanging", HELD), timeout=60)
            for _ in range(40)
        ]
        assert floats(client.infer("other", 1)) == [7.0]
        assert {by(call.result()) for call in calls} == {("1", "1/onnx")}
        assert floats(client.infer("other", 2)) == [14.0]
    assert len(sleeper.executed("hanging")) - executed <= 8

    def serving_again() -> bool:
        return client.infer("hanging", 1).model_version == "2"

    until(serving_again, "the bulkhead is free again")
