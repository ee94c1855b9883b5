"""Streams through ``sidecar serve`` to another server, which may answer any number of times."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e import remotes
from tests.e2e.remotes import HERE, THERE, Counting
from tests.e2e.support import (
    Client,
    Server,
    fails,
    floats,
    onnx_times,
    request,
    running,
    until,
    variant,
    write,
)
from tests.support.upstream import PATIENCE_S, Upstream

TOKEN = "the sidecar's own secret"


@pytest.fixture(scope="module")
def other() -> Iterator[Upstream]:
    with remotes.upstream() as running_there:
        yield running_there


@pytest.fixture(scope="module")
def server(other: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "token").write_text(TOKEN)
    local = variant("onnx", onnx_times(folder, 3, "local.onnx"))
    tree = [
        remotes.in_front(other.address),
        {"name": THERE, "variants": [remotes.remote(other.address, version="1")]},
        {"name": "local", "variants": [local]},
    ]
    config = write(folder, tree, admin={"token_file": str(folder / "token")})
    with running(config) as started:
        yield started
        started.signal()
        assert started.wait() == 0
        assert "Traceback" not in started.text


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.addresses["grpc"]) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_it_was(other: Upstream) -> Iterator[None]:
    other.calls.clear()
    yield
    other.stream = other.identity_stream


class Feed:
    """The client's side of a stream, fed by hand; stays open until told otherwise."""

    def __init__(self, *requests: pb.ModelInferRequest) -> None:
        self._queue: SimpleQueue[pb.ModelInferRequest | None] = SimpleQueue()
        self.send(*requests)

    def send(self, *requests: pb.ModelInferRequest | None) -> None:
        for one in requests:
            self._queue.put(one)

    def close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        while (one := self._queue.get()) is not None:
            yield one


def numbered(count: int, model: str = HERE) -> list[pb.ModelInferRequest]:
    return [request(model, n, request_id=f"n{n}") for n in range(count)]


def answer(body: bytes, value: float | None = None, **fields: Any) -> bytes:
    """An element of the other server's: its own names, the request's id."""
    asked = pb.ModelInferRequest.FromString(body)
    element = pb.ModelStreamInferResponse(**fields)
    response = element.infer_response
    response.model_name, response.model_version, response.id = THERE, "1", asked.id
    if value is not None:
        tensor = request("", value)
        response.outputs.add(name="y", datatype="FP32", shape=[1, 1])
        response.raw_output_contents.extend(tensor.raw_input_contents)
    return element.SerializeToString()


def value_of(body: bytes) -> int:
    asked = pb.ModelInferRequest.FromString(body)
    return int(np.frombuffer(asked.raw_input_contents[0], np.float32)[0])


def test_answers_come_in_order_under_our_names(client, other):
    counting = Counting(client, HERE)
    answers = [element.infer_response for element in client.stream(iter(numbered(40)))]
    assert [one.id for one in answers] == [f"n{n}" for n in range(40)]
    assert [floats(one) for one in answers] == [[float(n)] for n in range(40)]
    assert {(one.model_name, one.model_version) for one in answers} == {(HERE, "2")}
    assert counting.since() == {"success": 40, "inferences": 40, "executions": 40}


def test_where_the_names_agree_elements_are_not_touched(client, other):
    later = b"\xa2\x06\x03new"  # a field of a later protocol

    def stream(bodies: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for body in bodies:
            assert body == sent
            yield answer(body, 5) + later

    other.stream = stream
    sent = request(THERE, 5, request_id="a").SerializeToString()
    [element] = client.stream(iter([pb.ModelInferRequest.FromString(sent)]))
    assert element.SerializeToString() == answer(sent, 5) + later


def test_a_request_may_have_several_answers_or_none(client, other):
    def stream(bodies: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for body in bodies:
            for n in range(value_of(body)):
                yield answer(body, n)
        yield answer(body, 99)  # after the last request, too

    other.stream = stream
    counting = Counting(client, HERE)
    asked = [request(HERE, n, request_id=f"n{n}") for n in (3, 0, 2)]
    got = [one.infer_response for one in client.stream(iter(asked))]
    assert [(one.id, floats(one)) for one in got] == [
        ("n3", [0]), ("n3", [1]), ("n3", [2]), ("n2", [0]), ("n2", [1]), ("n2", [99]),
    ]  # fmt: skip
    assert counting.since() == {"success": 3, "inferences": 3, "executions": 3}


def test_an_answer_comes_before_the_next_request_goes(client, other):
    """Nothing on the way waits for more."""
    feed = Feed()
    elements = client.stream(iter(feed))
    for n in range(3):
        feed.send(request(HERE, n))
        assert floats(next(elements).infer_response) == [n]
    feed.close()
    assert list(elements) == []


def test_an_error_element_is_passed_on_and_the_stream_goes_on(client, other):
    def stream(bodies: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for body in bodies:
            value = value_of(body)
            yield answer(body, error_message="1 is not for me") if value == 1 else answer(body, 7)

    other.stream = stream
    counting = Counting(client, HERE)
    got = list(client.stream(iter(numbered(3))))
    assert [one.error_message for one in got] == ["", "1 is not for me", ""]
    assert [one.infer_response.id for one in got] == ["n0", "n1", "n2"]
    assert {one.infer_response.model_name for one in got} == {HERE}
    assert counting.since() == {"success": 2, "inferences": 2, "executions": 2, "fail": 1}


def test_an_error_ends_the_stream_with_its_code_and_text(client, other):
    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield answer(next(bodies), 1)
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "one is enough")

    other.stream = stream
    counting = Counting(client, HERE)
    feed = Feed(*numbered(1))
    elements = client.stream(iter(feed))
    assert floats(next(elements).infer_response) == [1]
    with fails(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        next(elements)
    assert caught[0].details() == "one is enough"
    feed.close()
    assert counting.since() == {"success": 1, "inferences": 1, "executions": 1}


def test_requests_that_a_broken_stream_leaves_have_failed(client, other):
    arrived = threading.Semaphore(0)

    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(3):
            next(bodies)
            arrived.release()
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        yield b""

    other.stream = stream
    counting = Counting(client, HERE)
    feed = Feed(*numbered(3))
    with fails(grpc.StatusCode.UNAVAILABLE) as caught:
        list(client.stream(iter(feed)))
    assert caught[0].details() == "gone"
    feed.close()
    until(lambda: counting.since() == {"fail": 3}, "all three are counted")


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x12\x05\x0a\x09xyz"])
def test_an_element_that_is_garbage_is_the_servers_fault(client, other, garbage):
    ended = threading.Event()

    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        next(bodies)
        yield garbage
        ended.wait(PATIENCE_S)

    other.stream = stream
    counting = Counting(client, HERE)
    feed = Feed(*numbered(1))
    with fails(grpc.StatusCode.INTERNAL) as caught:
        list(client.stream(iter(feed)))
    feed.close()
    assert "upstream server's answer" in caught[0].details()
    assert ended.wait(PATIENCE_S)  # nobody listens there any more
    assert counting.since() == {"fail": 1}


def test_a_client_that_cancels_ends_the_stream_there(client, other):
    entered, ended = threading.Event(), threading.Event()

    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        yield answer(next(bodies), 1)
        entered.set()
        ended.wait(PATIENCE_S)

    other.stream = stream
    counting = Counting(client, HERE)
    feed = Feed(*numbered(2))
    elements = client.stream(iter(feed))
    next(elements)
    assert entered.wait(PATIENCE_S)
    elements.cancel()
    assert ended.wait(PATIENCE_S)
    feed.close()
    assert counting.since() == {"success": 1, "inferences": 1, "executions": 1}


def test_a_client_that_is_done_ends_the_requests_there(client, other):
    """And still gets what comes after."""
    ended = threading.Event()

    def stream(bodies: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        last = list(bodies)[-1]
        ended.set()
        yield answer(last, 4)

    other.stream = stream
    [element] = client.stream(iter(numbered(3)))
    assert ended.is_set()
    assert (element.infer_response.id, floats(element.infer_response)) == ("n2", [4])


def test_two_models_of_other_servers_in_one_stream_are_a_clear_error(client, other):
    elements = client.stream(iter([request(HERE, 1), request(THERE, 2)]))
    assert floats(next(elements).infer_response) == [1]  # what went before is answered
    with fails(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        next(elements)
    assert "open another stream" in caught[0].details()
    assert HERE in caught[0].details()


def test_a_stream_that_begins_here_may_also_ask_there(client, other):
    """Those are sent on one by one: each is answered, in order."""
    asked = [request("local", 1), request(HERE, 2), request("local", 3), request(THERE, 4)]
    got = [floats(one.infer_response) for one in client.stream(iter(asked))]
    assert got == [[3], [2], [9], [4]]
    assert [call.method for call in other.calls] == ["ModelInfer", "ModelInfer"]


def test_identity_metadata_and_deadline_go_on(client, other):
    sent = (("x-request-id", "s-1"), ("x-custom", "c"), ("authorization", f"bearer {TOKEN}"))
    assert len(list(client.stream(iter(numbered(1)), metadata=sent, timeout=30))) == 1
    [call] = other.calls
    assert (call.metadata["x-request-id"], call.metadata["x-custom"]) == ("s-1", "c")
    assert "authorization" not in call.metadata
    assert 5 < call.remaining_s <= 31
    assert len(list(client.stream(iter(numbered(1)), timeout=None))) == 1
    assert other.calls[-1].metadata["x-request-id"]
    assert other.calls[-1].remaining_s > 1e9  # it may rightly stay open for days


def test_idle_streams_hold_up_nothing(client, other):
    feeds = [Feed(*numbered(1)) for _ in range(12)]  # the other server has 16 threads
    streams = [client.stream(iter(feed)) for feed in feeds]
    for elements in streams:
        assert floats(next(elements).infer_response) == [0]
    assert client.health() == "SERVING"
    assert floats(client.infer(HERE, 3)) == [3]
    for feed in feeds:
        feed.close()
    assert [list(elements) for elements in streams] == [[]] * 12


def test_sixteen_mebibytes_go_both_ways(client, other):
    array = remotes.large(16)
    [element] = client.stream(iter([request(HERE, array)]))
    assert element.infer_response.raw_output_contents[0] == array.tobytes()
    assert element.infer_response.model_name == HERE
