"""``ModelStreamInfer`` over a real socket: in order, bounded, errors as elements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
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
    request,
    serving,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    with serving(configure(folder, model("mlp"), model("any"))) as up:
        yield up
        until(up.gateway.admission.idle)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def numbered(count: int, name: str = "any") -> list[bytes]:
    return [
        request(name, {"x": np.full((1, 2), n, np.float32)}, id=f"n{n}").SerializeToString()
        for n in range(count)
    ]


class Feed:
    """The client's side of a stream, fed by hand."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self.taken = 0

    def send(self, *bodies: bytes | None) -> None:
        for body in bodies:
            self._queue.put(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        body = self._queue.get()
        if body is None:
            raise StopIteration
        self.taken += 1
        return body


def test_answers_come_in_order(served: Served) -> None:
    """Though worked on side by side: the first waits until the second is done."""
    second_done = threading.Event()
    order: list[float] = []

    def out_of_order(inputs: Any) -> Any:
        number = float(inputs["x"][0, 0])
        if number == 0:
            assert second_done.wait(20)
        order.append(number)
        if number == 1:
            second_done.set()
        return [inputs["x"].copy()]

    served.put("any", out_of_order)
    answers = list(served.stream(iter(numbered(5))))
    assert order[0] == 1
    assert [a.infer_response.id for a in answers] == ["n0", "n1", "n2", "n3", "n4"]
    values = [np.frombuffer(a.infer_response.raw_output_contents[0], "<f4")[0] for a in answers]
    assert values == [0, 1, 2, 3, 4]
    for answer in answers:
        assert answer.error_message == ""
        assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_many_requests_on_one_stream(served: Served) -> None:
    """More than may be in flight, answered while they come."""
    answers = served.stream(iter(numbered(200)))
    assert [a.infer_response.id for a in answers] == [f"n{n}" for n in range(200)]
    _, copy = served.gateway.registry.find("any", "")
    assert served.gateway.counts(copy.slot).durations["success"][0] == 200
    identities = [r.request_id for r in served.gateway.timings.take(1000)]
    assert len(set(identities)) == 200


def test_an_error_is_an_element_and_not_the_end(served: Served) -> None:
    bodies = numbered(4)
    bodies[1] = request("nope", {}, id="bad").SerializeToString()
    bodies[2] = b"\xff\xff"
    first, unknown, broken, last = served.stream(iter(bodies))
    assert first.infer_response.id == "n0"
    assert "unknown model 'nope'" in unknown.error_message
    assert unknown.infer_response.id == "bad"
    assert "not a ModelInferRequest" in broken.error_message
    assert last.error_message == ""
    assert last.infer_response.id == "n3"


def test_an_error_in_the_first_element(served: Served) -> None:
    bodies = [b"\xff", request("nope", {}).SerializeToString(), *numbered(1)]
    broken, unknown, good = served.stream(iter(bodies))
    assert "not a ModelInferRequest" in broken.error_message
    assert "nope" in unknown.error_message
    assert good.infer_response.id == "n0"


@pytest.mark.parametrize("place", [0, 2])
def test_clients_may_ask_for_errors_as_statuses(served: Served, place: int) -> None:
    bodies = numbered(4)
    bodies[place] = request("nope", {}).SerializeToString()
    answers = served.stream(iter(bodies), metadata=[("triton_grpc_error", "true")])
    got = []
    with pytest.raises(grpc.RpcError) as caught:
        got.extend(iter(answers))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "nope" in caught.value.details()
    assert [a.error_message for a in got] == [""] * len(got)


def test_a_bug_says_nothing_of_itself(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Any) -> Any:
        message = "/secret/weights.bin"
        raise RuntimeError(message)

    served.put("any", fail)
    [answer] = served.stream(iter(numbered(1)))
    assert answer.error_message.startswith("internal error")
    assert "secret" not in answer.error_message
    [record] = [r for r in caplog.records if r.exc_info]
    assert "weights.bin" in str(record.exc_info)


def test_an_empty_stream(served: Served) -> None:
    assert list(served.stream(iter(()))) == []


def test_a_conversation(served: Served) -> None:
    """Each answer comes while the stream is still open."""
    feed = Feed()
    answers = served.stream(feed)
    for body in numbered(3):
        feed.send(body)
        assert next(answers).infer_response.id.startswith("n")
    feed.send(None)
    assert list(answers) == []


def test_a_client_that_goes_away(served: Served) -> None:
    """The stream's place is free again, whether it was idle or had work under way."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(inputs: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return [inputs["x"].copy()]

    served.put("any", wait)
    idle = Feed()
    idle.send(mlp_request().SerializeToString())
    answers = served.stream(idle)
    next(answers)
    busy = served.stream(iter(numbered(40)))
    assert entered.wait(20)
    assert served.gateway.admission.streams == 2
    answers.cancel()
    busy.cancel()
    go_on.set()
    idle.send(None)
    until(served.gateway.admission.idle)
    assert served.gateway.admission.bytes == 0


def test_what_waits_on_a_stream_is_bounded(served: Served) -> None:
    """A client that only sends is stopped by flow control: the server takes no more of it."""
    go_on = threading.Event()

    def wait(inputs: Any) -> Any:
        assert go_on.wait(20)
        return [inputs["x"].copy()]

    served.put("any", wait)
    rows = np.zeros((500, 200), np.float32)  # 400 kB, far over HTTP/2's window
    body = request("any", {"x": rows}).SerializeToString()
    feed = Feed()
    answers = served.stream(feed, timeout=60)
    feed.send(*[body] * 100, None)
    until(lambda: served.gateway.admission.requests >= 32)
    for _ in range(50):  # time enough to take all hundred
        assert served.call("ServerLive").live
    # 32 in flight, one that waits to be, and what lies in the buffers of gRPC and the kernel.
    assert served.gateway.admission.requests <= 34
    assert served.gateway.admission.bytes <= 34 * len(body)
    go_on.set()
    assert len(list(answers)) == 100
    assert feed.taken == 100


def test_bodies_that_wait_count_as_in_flight(folder: Path) -> None:
    """Over the bound they are refused, as other requests are; the stream goes on."""
    config = configure(folder, model("any"), admission={"max_requests": 3})
    entered, go_on = threading.Semaphore(0), threading.Event()

    def wait(inputs: Any) -> Any:
        entered.release()
        assert go_on.wait(20)
        return [inputs["x"].copy()]

    with serving(config) as up:
        up.put("any", wait)
        feed = Feed()
        answers = up.stream(feed)
        feed.send(*numbered(5))
        until(lambda: up.gateway.page.server_counters()["refused_requests"] == 2)
        go_on.set()
        got = [next(answers) for _ in range(5)]
        assert [a.error_message == "" for a in got] == [True, True, True, False, False]
        assert "3 requests are in flight" in got[3].error_message
        assert got[4].infer_response.id == "n4"
        until(lambda: up.gateway.admission.requests == 0)
        feed.send(numbered(1)[0], None)
        assert [a.error_message for a in answers] == [""]
        until(up.gateway.admission.idle)


def test_more_streams_than_allowed(folder: Path) -> None:
    with serving(configure(folder, model("mlp"), admission={"max_streams": 1})) as up:
        feed = Feed()
        first = up.stream(feed)
        feed.send(mlp_request().SerializeToString())
        next(first)
        with pytest.raises(grpc.RpcError) as caught:
            list(up.stream(iter([mlp_request().SerializeToString()])))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        feed.send(None)
        assert list(first) == []
        until(lambda: up.gateway.admission.streams == 0)
        assert len(list(up.stream(iter([mlp_request().SerializeToString()])))) == 1
        until(up.gateway.admission.idle)


def test_a_request_of_a_stream_has_a_deadline_of_its_own(served: Served) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(inputs: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return [inputs["x"].copy()]

    served.put("any", wait)
    running = 2  # the core is made for two cores
    hurried = pb.ModelInferRequest.FromString(numbered(1)[0])
    hurried.id = "hurried"
    hurried.parameters["timeout"].int64_param = 1000
    feed = Feed()
    answers = served.stream(feed)
    feed.send(*numbered(running))
    assert entered.wait(20)
    feed.send(hurried.SerializeToString(), None)
    until(lambda: served.gateway.admission.requests == running + 1)
    pause = threading.Event()
    pause.wait(0.02)  # the time limit: what is tested is that it passes in the queue
    go_on.set()
    *_, last = answers
    assert last.infer_response.id == "hurried"
    assert "deadline" in last.error_message
