"""Too much: bounds refuse at once, health answers meanwhile, deadlines are kept, nothing leaks."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import httpx
import numpy as np
import psutil
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.h2frames import SlowClient
from tests.e2e.support import (
    HELD,
    SERVICE,
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

MAX_REQUESTS = 40
MAX_STREAMS = 32
MAX_BYTES = 65536
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory):
    return Sleeper(tmp_path_factory.mktemp("overload"))


@pytest.fixture(scope="module")
def server(sleeper):
    onnx_times(sleeper.folder, 3, "quick.onnx")
    quick = variant("onnx", sleeper.folder / "quick.onnx", max_batch_size=65536)
    tree = [
        {"name": "sleeper", "variants": [sleeper.variant()]},
        {"name": "quick", "variants": [quick]},
    ]
    config = write(
        sleeper.folder, tree,
        admission={
            "max_requests": MAX_REQUESTS, "max_bytes": MAX_BYTES, "max_streams": MAX_STREAMS
        },
        pool={"running": 2, "threads": 8},
        grpc={"max_message_bytes": 200_000, "max_connection_age_s": 3600},
        http={"max_body_bytes": 200_000},
    )  # fmt: skip
    with running(config) as started:
        yield started
        started.signal()
        assert started.wait() == 0
        assert "Traceback" not in started.text


@pytest.fixture(scope="module")
def client(server):
    with Client(server.addresses["grpc"]) as made:
        yield made


@pytest.fixture(autouse=True)
def _idle(client):
    """Each test begins, and leaves the server, with nothing in flight."""
    yield

    # All places are free again: as many as there are can be had at one time.
    def all_free() -> bool:
        calls = [client.stub("ModelInfer").future(request("quick", 1)) for _ in range(MAX_REQUESTS)]
        return all(call.exception() is None for call in calls)

    until(all_free, "every place is free again")


def fill(client: Client, count: int, milliseconds: float, **options) -> list:
    return [
        client.stub("ModelInfer").future(request("sleeper", milliseconds), timeout=60, **options)
        for _ in range(count)
    ]


def assert_health_answers(server, client: Client) -> None:
    """While everything else is held up. How soon is measured by a benchmark."""
    assert client.health() == "SERVING"
    assert client.call("ServerReady").ready
    assert client.call("ModelMetadata", {"name": "sleeper"}).inputs[0].name == "x"
    assert client.call("ModelStatistics", {"name": "sleeper"}).model_stats
    assert (
        httpx.get(f"http://{server.addresses['http']}/v2/health/ready", timeout=60).status_code
        == 200
    )


def test_requests_over_the_limit_are_refused_at_once(server, client, sleeper):
    with sleeper.holding():
        calls = occupy(client, sleeper)
        calls += fill(client, MAX_REQUESTS - 2, 0)
        assert client.call("ServerLive").live  # all have arrived, as this did after them
        with fails(BUSY) as failure:  # at once: no place becomes free before it
            client.infer("quick", 1)
        assert str(MAX_REQUESTS) in failure[0].details()
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
        url = f"http://{server.addresses['http']}/v2/models/quick/infer"
        assert httpx.post(url, json=body, timeout=60).status_code == 429
        assert_health_answers(server, client)
        assert not any(call.done() for call in calls)
    assert [call.result().model_name for call in calls] == ["sleeper"] * MAX_REQUESTS


def test_bytes_over_the_limit_are_refused(client, sleeper):
    before = len(sleeper.executed())
    rows = np.full((1024, 1), HELD, np.float32)  # 4 kB each
    with sleeper.holding():
        call = client.stub("ModelInfer").future(request("sleeper", rows), timeout=60)
        until(lambda: len(sleeper.executed()) > before, "it is being executed")
        with fails(BUSY) as failure:
            client.infer("quick", np.zeros((16_000, 1), np.float32))
        assert str(MAX_BYTES) in failure[0].details()
        assert client.infer("quick", 1)  # a small one fits
    assert call.result()
    # One body over the bound is let in when it is alone: else it could never be served.
    big = np.zeros((20_000, 1), np.float32)
    answer = until(lambda: unless_busy(lambda: client.infer("quick", big)), "the others are gone")
    assert answer.outputs[0].shape == [20_000, 1]


def unless_busy(action):
    """What ``action`` gives; ``None`` where a bound refuses it."""
    try:
        return action()
    except grpc.RpcError as error:
        if error.code() != BUSY:
            raise
    return None


def test_a_message_over_the_limit_is_refused_and_the_server_lives(server, client):
    with fails(BUSY):
        client.infer("quick", np.zeros((100_000, 1), np.float32))
    assert client.infer("quick", 1)
    url = f"http://{server.addresses['http']}/v2/models/quick/infer"
    assert httpx.post(url, content=b"{" + b" " * 300_000, timeout=60).status_code == 413


def test_clients_that_send_no_body_hold_no_thread(server, client):
    process = psutil.Process(server.pids[0])
    client.infer("quick", 1)
    threads = process.num_threads()
    with SlowClient(server.addresses["grpc"]) as slow:
        slow.open_streams(MAX_REQUESTS - 5, f"/{SERVICE}/ModelInfer")
        slow.open_streams(20, f"/{SERVICE}/ServerLive")
        assert slow.refused() == 0
        assert process.num_threads() <= threads + 4  # no thread a stream: 55 are open
        assert floats(client.infer("quick", 2)) == [6.0]
        assert_health_answers(server, client)
        # They count as requests in flight, because their bodies could come at any time.
        slow.open_streams(20, f"/{SERVICE}/ModelInfer")
        assert until(slow.refused, "those over the limit are refused") <= 15
        assert client.call("ServerLive").live


# --- deadlines ------------------------------------------------------------------------------------


def occupy(client: Client, sleeper: Sleeper, value: float = HELD) -> list:
    """Both places of the pool, so that what comes next must queue while the sleeper is held."""
    before = len(sleeper.executed())
    calls = fill(client, 2, value)
    until(lambda: len(sleeper.executed()) == before + 2, "both are being executed")
    return calls


def test_a_request_whose_time_is_over_in_the_queue_is_not_executed(client, sleeper):
    with sleeper.holding():
        calls = occupy(client, sleeper)
        with fails(grpc.StatusCode.DEADLINE_EXCEEDED):
            client.infer("sleeper", 7.25, timeout=0.1)
    assert all(call.result() for call in calls)
    client.infer("quick", 1)  # the queue is past it
    assert "7.25" not in sleeper.executed()


def test_the_timeout_parameter_counts_the_time_in_the_queue(server, client, sleeper):
    before = client.statistics("sleeper").inference_stats.fail.count
    message = request("sleeper", 8.25, parameters={"timeout": 50_000})
    url = f"http://{server.addresses['http']}/v2/models/sleeper/infer"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [8.25]}
    # This limit is in the body, which is read when its turn comes: so what holds it up must end.
    calls = occupy(client, sleeper, 2000)
    over_http = httpx.post(
        url, json={"inputs": [tensor], "parameters": {"timeout": 50_000}}, timeout=60
    )
    assert over_http.status_code == 504
    assert all(call.result() for call in calls)
    calls = occupy(client, sleeper, 2000)
    with fails(grpc.StatusCode.DEADLINE_EXCEEDED) as failure:
        client.call("ModelInfer", message)
    assert "deadline" in failure[0].details()
    assert all(call.result() for call in calls)
    assert "8.25" not in sleeper.executed()
    assert client.statistics("sleeper").inference_stats.fail.count == before + 2
    # Long enough: it is served.
    message.parameters["timeout"].int64_param = 20_000_000
    assert floats(client.call("ModelInfer", message)) == [16.5]


def test_a_request_that_was_cancelled_in_the_queue_is_not_executed(client, sleeper):
    with sleeper.holding():
        calls = occupy(client, sleeper)
        waiting = client.stub("ModelInfer").future(request("sleeper", 9.25))
        assert client.call("ServerLive").live  # it has arrived, as this did after it
        waiting.cancel()
    assert all(call.result() for call in calls)
    client.infer("quick", 1)
    assert "9.25" not in sleeper.executed()


# --- streams --------------------------------------------------------------------------------------


class Feed:
    """What a stream sends, as the test goes on."""

    def __init__(self) -> None:
        self._queue: queue.Queue[pb.ModelInferRequest | None] = queue.Queue()

    def put(self, message: pb.ModelInferRequest | None) -> None:
        self._queue.put(message)

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        return iter(self._queue.get, None)


def test_streams_over_the_limit_are_refused_and_idle_ones_stop_nothing(server, client):
    feeds = [Feed() for _ in range(40)]
    streams = [client.stream(iter(feed)) for feed in feeds]
    for number, feed in enumerate(feeds):
        feed.put(request("quick", number))
    codes, opened = [], []
    for number, (stream, feed) in enumerate(zip(streams, feeds, strict=True)):
        try:
            answer = next(stream)
        except grpc.RpcError as error:
            codes.append(error.code())
        else:
            assert floats(answer.infer_response) == [3.0 * number]
            opened.append((stream, feed))
    assert len(opened) == MAX_STREAMS
    assert codes == [BUSY] * (40 - MAX_STREAMS)
    # All of them are open and idle now.
    assert_health_answers(server, client)
    assert floats(client.infer("quick", 2)) == [6.0]
    for stream, feed in opened:
        feed.put(None)
        assert list(stream) == []

    def again() -> list:
        return list(client.stream(iter([request("quick", 1)])))

    until(lambda: unless_busy(again), "closed streams give their places back")


def test_answers_of_a_stream_come_in_order_and_an_error_is_one_element(client):
    values = [30, -1, 1, 20, 2]
    messages = [request("sleeper", v, request_id=str(n)) for n, v in enumerate(values)]
    answers = list(client.stream(iter(messages)))
    assert [bool(a.error_message) for a in answers] == [v < 0 for v in values]
    assert [a.infer_response.id for a in answers] == ["0", "1", "2", "3", "4"]
    assert [floats(a.infer_response) for a in answers if not a.error_message] == [
        [60.0], [2.0], [40.0], [4.0]
    ]  # fmt: skip
    assert "Traceback" not in answers[1].error_message
    many = [request("quick", n) for n in range(300)]
    assert [floats(a.infer_response)[0] for a in client.stream(iter(many))] == [
        3.0 * n for n in range(300)
    ]


def test_with_triton_grpc_error_an_error_ends_the_stream(client):
    messages = [request("quick", 1), request("nobody", 1), request("quick", 2)]
    stream = client.stream(iter(messages), metadata=(("triton_grpc_error", "true"),))
    assert floats(next(stream).infer_response) == [3.0]
    with fails(grpc.StatusCode.NOT_FOUND):
        next(stream)


def test_a_client_that_vanishes_amid_its_stream_gives_its_place_back(server, client):
    threads = psutil.Process(server.pids[0]).num_threads()
    for _ in range(2 * MAX_STREAMS):
        vanishing = Client(server.addresses["grpc"])
        feed = Feed()
        stream = vanishing.stream(iter(feed))
        for _ in range(40):  # more than one stream's window, none of them read
            feed.put(request("quick", 1))

        # Refused where the server has not noticed yet that those before it are gone.
        unless_busy(lambda stream=stream: next(stream))
        vanishing.channel.close()
        feed.put(None)
    until(
        lambda: psutil.Process(server.pids[0]).num_threads() <= threads + MAX_STREAMS + 2,
        "the readers of streams have ended",
    )
