"""Mirroring, at the gateway's end: what reaches the monitor, what does not, and that it adds up."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from sidecar.config_monitor import MonitorConfig
from sidecar.errors import ExecutionError
from sidecar.gateway.http import HttpServer
from sidecar.gateway.sample import owned
from sidecar.gateway.tap import Tap
from sidecar.monitor.exchange import Exchange
from sidecar.protocol.codec import parse_request
from sidecar.protocol.encode import raw_bytes
from sidecar.protocol.pb import inference_pb2 as pb
from tests.gateway.served import (
    Served,
    configure,
    make_models,
    mlp_request,
    model,
    request,
    serving,
    variant,
)
from tests.monitor.listening import Listening, exchange, until
from tests.support.upstream import Model, Upstream

KEYS = ("request_id", "traceparent", "model", "variant", "transport", "outcome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with Listening(tmp_path / "tap.sock") as made:
        yield made


@contextmanager
def tapped(
    served: Served,
    path: Path,
    *,
    connect: bool = True,
    models: frozenset[str] | None = None,
    **channel: Any,
) -> Iterator[Tap]:
    """Everything that a gateway answers is sampled."""
    config = MonitorConfig(mirror={"sample_rate": 1}, channel=channel)
    gateway = served.gateway
    gateway.tap = tap = Tap(path, config, gateway.page, gateway.clock, 3, models)
    tap.start()
    try:
        if connect:
            until(lambda: tap.connected, "the tap has found the monitor")
        yield tap
    finally:
        tap.close()
        gateway.tap = None


def counts(served: Served) -> dict[str, int]:
    """Of the tap, those that are not 0, without their prefix."""
    found = served.gateway.page.server_counters()
    return {name[4:]: n for name, n in found.items() if name.startswith("tap_") and n}


def summary(one: Exchange) -> tuple[Any, ...]:
    return tuple(getattr(one, key) for key in KEYS)


# --- what is mirrored -----------------------------------------------------------------------------


def test_a_unary_call(folder: Path, listening: Listening) -> None:
    message = mlp_request()
    metadata = (("x-request-id", "abc"), ("traceparent", "00-1-2-01"))
    with serving(configure(folder, model("mlp"))) as up, tapped(up, listening.listener.path):
        answer = up.infer(message, metadata=metadata)
        [got] = listening.take(1)
        until(lambda: counts(up) == {"sampled": 1, "sent": 1}, "it is acknowledged")
    assert summary(got) == ("abc", "00-1-2-01", "mlp", "mlp:1/onnx", "grpc", "OK")
    assert bytes(got.request) == message.SerializeToString()
    assert got.response is not None
    assert pb.ModelInferResponse.FromString(bytes(got.response)) == answer
    assert 0 < got.execute_ns < got.end_ns - got.start_ns
    assert got.request_header_bytes is None


def test_only_models_that_are_watched(folder: Path, listening: Listening) -> None:
    config = configure(folder, model("mlp"), model("any"))
    watched = frozenset({"mlp"})
    with serving(config) as up, tapped(up, listening.listener.path, models=watched):
        up.infer(request("any", {"x": np.zeros((1, 2), np.float32)}))
        up.infer(mlp_request())
        [got] = listening.take(1)
        until(lambda: counts(up) == {"sampled": 1, "sent": 1}, "the other one was not sampled")
    assert got.model == "mlp"


def test_large_bodies_arrive_whole(folder: Path, listening: Listening) -> None:
    """Over the size from which they travel as memfds."""
    message = request("any", {"x": np.random.default_rng(0).random((300, 500), np.float32)})
    with serving(configure(folder, model("any"))) as up, tapped(up, listening.listener.path):
        answer = up.infer(message)
        [got] = listening.take(1)
    assert bytes(got.request) == message.SerializeToString()
    assert pb.ModelInferResponse.FromString(bytes(got.response or b"")) == answer


def test_a_stream(folder: Path, listening: Listening) -> None:
    bodies = [
        request("any", {"x": np.full((1, 2), n, np.float32)}, id=f"n{n}").SerializeToString()
        for n in range(20)
    ]
    with serving(configure(folder, model("any"))) as up, tapped(up, listening.listener.path):
        elements = list(up.stream(iter(bodies), metadata=(("x-request-id", "s"),)))
        got = {one.request_id: one for one in listening.take(20)}
    for number, (body, element) in enumerate(zip(bodies, elements, strict=True)):
        one = got[f"s.{number}"]
        assert (one.transport, bytes(one.request)) == ("stream", body)
        assert pb.ModelStreamInferResponse.FromString(bytes(one.response or b"")) == element


def test_http_before_it_is_packed(folder: Path, listening: Listening) -> None:
    """Bodies without their compression, with the length of the JSON before binary data."""
    x = np.random.default_rng(0).random((200, 2), np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": [200, 2]}
    plain = json.dumps({"inputs": [{**tensor, "data": x.ravel().tolist()}]}).encode()
    binary = {**tensor, "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}}).encode()
    config = configure(folder, model("any"), http={"address": "127.0.0.1:0"})
    with serving(config) as up, tapped(up, listening.listener.path):
        server = HttpServer(config.gateway, up.gateway)
        with httpx.Client(base_url=f"http://{server.start()}", timeout=60) as client:
            url = "/v2/models/any/infer"
            first = client.post(
                url, content=gzip.compress(plain), headers={"content-encoding": "gzip"}
            )
            second = client.post(
                url, content=head + x.tobytes(),
                headers={
                    "inference-header-content-length": str(len(head)), "accept-encoding": "gzip",
                },
            )  # fmt: skip
        server.stop(5)
        one, two = listening.take(2)
    assert second.headers["content-encoding"] == "gzip"
    assert (bytes(one.request), bytes(one.response or b"")) == (plain, first.content)
    assert (one.request_header_bytes, one.response_header_bytes) == (None, None)
    assert (bytes(two.request), bytes(two.response or b"")) == (head + x.tobytes(), second.content)
    assert two.request_header_bytes == len(head)
    assert two.response_header_bytes == int(second.headers["inference-header-content-length"])
    assert {one.transport, two.transport} == {"http"}
    assert one.model == "any"


def test_what_another_server_answers(folder: Path, listening: Listening) -> None:
    with Upstream(Model(name="any")) as other:
        remote = {"name": "there", "version": "1", "roles": ["serving"],
                  "runtime": {"kind": "remote", "address": other.address}}  # fmt: skip
        with (
            serving(configure(folder, model("any", remote))) as up,
            tapped(up, listening.listener.path),
        ):
            message = request("any", {"x": np.ones((1, 4), np.float32)})
            answer = up.infer(message)
            [element] = up.stream(iter([message.SerializeToString()]))
            one, two = listening.take(2)
            sequence = request("any", {"x": np.ones((1, 4), np.float32)})
            sequence.parameters["sequence_id"].int64_param = 5
            up.infer(sequence)
            until(lambda: counts(up).get("sequence") == 1, "a sequence is not mirrored")
    assert (one.variant, one.transport, one.outcome) == ("any:1/there", "grpc", "OK")
    assert pb.ModelInferResponse.FromString(bytes(one.response or b"")) == answer
    assert two.transport == "stream"
    assert pb.ModelStreamInferResponse.FromString(bytes(two.response or b"")) == element
    assert one.execute_ns > 0


def test_a_version_that_fails_is_seen_failing(folder: Path, listening: Listening) -> None:
    def fail(_: Any) -> list[Any]:
        text = "out of memory"
        raise ExecutionError(text)

    with serving(configure(folder, model("any"))) as up, tapped(up, listening.listener.path):
        up.put("any", fail)
        with pytest.raises(grpc.RpcError):
            up.infer(request("any", {"x": np.ones((1, 2), np.float32)}))
        [got] = listening.take(1)
    assert (got.outcome, got.response, got.variant) == ("ExecutionError", None, "any:1/onnx")
    assert got.end_ns > got.start_ns


def test_a_request_that_is_wrong_says_nothing_of_the_version(
    folder: Path, listening: Listening
) -> None:
    with serving(configure(folder, model("mlp"))) as up, tapped(up, listening.listener.path):
        with pytest.raises(grpc.RpcError) as caught:
            up.infer(request("mlp", {"x": np.ones((1, 3), np.float32)}))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        up.infer(mlp_request())
        [got] = listening.take(1)
        until(lambda: counts(up) == {"sampled": 1, "sent": 1}, "nothing else is counted")
    assert got.outcome == "OK"


def test_a_fallback_is_two_exchanges(folder: Path, listening: Listening) -> None:
    """The version that failed, and the one that answered, each under its own name."""

    def fail(_: Any) -> list[Any]:
        text = "out of memory"
        raise ExecutionError(text)

    both = model("any", variant("any"), variant("any", "1", "fallback", name="spare"))
    message = request("any", {"x": np.ones((1, 2), np.float32)})
    with serving(configure(folder, both)) as up, tapped(up, listening.listener.path):
        up.put("any", fail)
        up.infer(message, metadata=(("x-request-id", "f"),))
        first, second = listening.take(2)
        until(lambda: counts(up) == {"sampled": 2, "sent": 2}, "both are counted")
    assert summary(first)[0::3] == ("f", "any:1/onnx")
    assert (first.outcome, first.response) == ("ExecutionError", None)
    assert (second.variant, second.outcome, second.request_id) == ("any:1/spare", "OK", "f")
    assert second.response is not None


def test_answers_from_the_cache(folder: Path, listening: Listening) -> None:
    config = configure(folder, model("mlp", cache=True), cache={"max_bytes": 2**20})
    with serving(config) as up, tapped(up, listening.listener.path):
        up.infer(mlp_request())
        up.infer(mlp_request())
        first, second = listening.take(2)
    assert first.response == second.response
    assert (first.execute_ns > 0, second.execute_ns) == (True, 0)


# --- what is not ----------------------------------------------------------------------------------


def test_sequences_shared_memory_and_large_ones_are_counted(
    folder: Path, listening: Listening
) -> None:
    x = np.ones((1, 2), np.float32)
    sequence = request("any", {"x": x})
    sequence.parameters["sequence_id"].int64_param = 5
    region = request("any", {"x": x})
    region.outputs.add(name="y").parameters["shared_memory_region"].string_param = "gone"
    region.outputs[0].parameters["shared_memory_byte_size"].int64_param = 8
    with (
        serving(configure(folder, model("any"))) as up,
        tapped(up, listening.listener.path, max_exchange_bytes=1000),
    ):
        up.infer(sequence)
        with pytest.raises(grpc.RpcError):
            up.infer(region)
        up.infer(request("any", {"x": np.ones((1, 300), np.float32)}))  # it alone
        up.infer(request("any", {"x": np.ones((1, 150), np.float32)}))  # with its answer
        up.infer(request("any", {"x": x}))
        [got] = listening.take(1)
        expected = {"sampled": 5, "sent": 1, "sequence": 1, "shared_memory": 1, "too_large": 2}
        until(lambda: counts(up) == expected, "each is counted by its reason")
    assert parse_request(bytes(got.request)).inputs[0].shape == (1, 2)


def test_without_a_monitor_nothing_is_kept(folder: Path, tmp_path: Path) -> None:
    with (
        serving(configure(folder, model("mlp"))) as up,
        tapped(up, tmp_path / "nobody.sock", connect=False),
    ):
        for _ in range(5):
            up.infer(mlp_request())
        assert counts(up) == {"sampled": 5, "dropped_no_monitor": 5}


def test_a_full_channel_drops_and_counts(folder: Path, listening: Listening) -> None:
    message = request("any", {"x": np.ones((100, 100), np.float32)})
    with (
        serving(configure(folder, model("any"))) as up,
        tapped(up, listening.listener.path, max_bytes=400_000) as tap,
    ):
        listening.gate.clear()  # the monitor takes nothing any more
        for _ in range(20):
            up.infer(message)
        dropped = counts(up)["dropped_full"]
        assert 15 <= dropped < 20  # each takes 80 kB, and one may have been acknowledged
        listening.gate.set()
        until(lambda: counts(up).get("sent") == 20 - dropped, "what was taken arrives")
        up.infer(message)
        until(lambda: counts(up).get("sent") == 21 - dropped, "there is room again")
        assert tap.connected
        assert counts_balance(up)


def counts_balance(served: Served) -> bool:
    found = counts(served)
    return found["sampled"] == sum(found.values()) - found["sampled"]


def test_the_monitor_ends_and_comes_back(folder: Path, tmp_path: Path) -> None:
    """What had not arrived is counted as lost, and the next monitor is found."""
    path = tmp_path / "tap.sock"
    with (
        serving(configure(folder, model("mlp"))) as up,
        Listening(path) as first,
        tapped(up, path) as tap,
    ):
        first.gate.clear()
        for _ in range(5):
            up.infer(mlp_request())
        first.gate.set()
        first.listener.close()
        until(lambda: not tap.connected, "its end is noticed")
        up.infer(mlp_request())
        until(lambda: sum(counts(up).values()) == 12, "all are counted")
        found = counts(up)
        assert found["sampled"] == 6
        assert found["dropped_no_monitor"] == 1
        assert found.get("sent", 0) + found.get("dropped_lost", 0) == 5
        with Listening(path) as second:
            until(lambda: tap.connected, "the next monitor is found")
            up.infer(mlp_request())
            second.take(1)
            until(lambda: counts(up).get("sent", 0) == found.get("sent", 0) + 1, "it has arrived")
            assert counts_balance(up)


def test_the_monitor_sets_the_rate(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with (
        serving(configure(folder, model("mlp"))) as up,
        Listening(path, rate=0.25) as listening,
        tapped(up, path) as tap,
    ):
        until(lambda: tap.rate == 0.25, "the first rate has come")
        listening.listener.set_rate(0)
        until(lambda: tap.rate == 0, "it may be nothing")
        for _ in range(5):
            up.infer(mlp_request())
        assert counts(up) == {}
        listening.listener.close()
        until(lambda: tap.rate == 1, "without a monitor the configured one holds")


def test_the_share_that_is_taken_is_the_rate(folder: Path, tmp_path: Path) -> None:
    """5,000 draws at 0.1: over 6 sigma from 500 happens once in a billion runs."""
    config = MonitorConfig(mirror={"sample_rate": 0.1})
    with serving(configure(folder, model("mlp"))) as up:
        gateway = up.gateway
        tap = Tap(tmp_path / "nobody.sock", config, gateway.page, gateway.clock)
        body = mlp_request().SerializeToString()
        parsed = parse_request(body)
        for _ in range(5000):
            tap.consider(parsed, "grpc", body)
        assert abs(counts(up)["sampled"] - 500) < 6 * np.sqrt(5000 * 0.1 * 0.9)
        assert parsed.sample is None


def test_counters_reach_the_monitor(folder: Path, listening: Listening) -> None:
    with serving(configure(folder, model("mlp"))) as up, tapped(up, listening.listener.path):
        for _ in range(3):
            up.infer(mlp_request())
        told = listening.listener.tap_counters
        until(lambda: told().get("tap_sent") == 3, "the counts have come")
        assert told() == {"tap_sampled": 3, "tap_sent": 3}


def test_a_fault_in_handing_over_costs_no_answer(folder: Path, listening: Listening) -> None:
    with serving(configure(folder, model("mlp"))) as up, tapped(up, listening.listener.path) as tap:

        class Broken:
            def now_ns(self) -> int:
                raise RuntimeError

            def monotonic_ns(self) -> int:
                raise RuntimeError

        tap.clock = Broken()
        assert up.infer(mlp_request()).model_name == "mlp"


def test_a_listener_of_another_user_gets_nothing(
    folder: Path, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.gateway.tap.peer_uid", lambda _: 12345)
    with (
        serving(configure(folder, model("mlp"))) as up,
        tapped(up, listening.listener.path, connect=False),
    ):
        for _ in range(20):
            up.infer(mlp_request())
        assert counts(up) == {"sampled": 20, "dropped_no_monitor": 20}
    assert not listening.exchanges


def test_offering_after_the_end_is_counted(folder: Path, listening: Listening) -> None:
    with serving(configure(folder, model("mlp"))) as up:
        with tapped(up, listening.listener.path) as tap:
            pass
        tap.offer(exchange(), [b"answer"])
        assert counts(up) == {"sampled": 1, "dropped_no_monitor": 1}
        tap.close()  # twice is once


def test_rows_of_a_batch_do_not_keep_it_alive() -> None:
    """What is counted is what is held: a view of a large array is copied, one of its own is not."""
    whole = np.ones((64, 2000), np.float32)
    view = raw_bytes(whole)
    row = raw_bytes(whole[3:4])
    assert isinstance(row, memoryview)
    assert owned(view) is view
    copy = owned(row)
    assert isinstance(copy, bytes)
    assert copy == row
    assert owned(b"as it is") == b"as it is"
