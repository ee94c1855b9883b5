"""Tracing over real sockets: what came is found again in the records that the monitor is given."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from exporters.telemetry.context import parse
from sidecar.config_monitor import MonitorConfig
from sidecar.errors import ExecutionError
from sidecar.gateway.backlog import Told
from sidecar.gateway.http import HttpServer
from sidecar.gateway.logrecords import LogRecords
from sidecar.gateway.tap import Tap
from sidecar.gateway.tracing import Tracing
from sidecar.traces import SpanRecord
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
from tests.monitor.listening import Listening, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = f"00-{TRACE}-{SPAN}-01"
QUIET_CALLER = f"00-{TRACE}-{SPAN}-00"


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
def traced(
    served: Served,
    path: Path,
    *,
    ratio: float = 1.0,
    connect: bool = True,
    mirrored: bool = False,
) -> Iterator[Tap]:
    """Everything is traced, and mirrored if that is asked for."""
    gateway = served.gateway
    config = MonitorConfig(mirror={"sample_rate": 1})
    told = Told(gateway.page, spans=True, logs=True)
    assert told.spans is not None
    assert told.logs is not None
    settings = {"on": True, "ratio": ratio, "parent": True, "logs": True}
    gateway.tracing = Tracing(settings, told.spans, gateway.clock)
    models = None if mirrored else frozenset[str]()
    gateway.tap = tap = Tap(path, config, gateway.page, gateway.clock, 0, models, told)
    records = LogRecords(told.logs)
    records.attach()
    tap.start()
    try:
        if connect:
            until(lambda: tap.connected, "the tap has found the monitor")
        yield tap
    finally:
        records.detach()
        tap.close()
        gateway.tap = gateway.tracing = None


@contextmanager
def over_http(served: Served, folder: Path) -> Iterator[httpx.Client]:
    http = {"address": "127.0.0.1:0", "max_body_bytes": 8192}
    config = configure(folder, model("any"), http=http)
    server = HttpServer(config.gateway, served.gateway)
    with httpx.Client(base_url=f"http://{server.start()}", timeout=20) as client:
        yield client
    server.stop(5)


def small(**names: str) -> Any:
    return request("any", {"x": np.ones((1, 2), np.float32)}, **names)


JSON = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}


def trace_of(record: SpanRecord) -> str:
    found = parse(record.traceparent)
    assert found is not None
    assert found.sampled
    return f"{found.trace_id:032x}"


def child(record: SpanRecord) -> bool:
    """Whether it is a span of its own under the caller's."""
    return (
        trace_of(record) == TRACE
        and f"{record.parent_id:016x}" == SPAN
        and SPAN not in record.traceparent
    )


def nothing_else(served: Served, listening: Listening) -> None:
    """One more request, traced for sure: what came before it came before its record."""
    served.infer(small(), metadata=(("x-request-id", "the-last"), ("traceparent", CALLER)))
    [last] = listening.take_spans(1)
    assert last.request_id == "the-last"


# --- what a record says, by transport -------------------------------------------------------------


def test_a_unary_call(folder: Path, listening: Listening) -> None:
    message = mlp_request(3)
    metadata = (("x-request-id", "abc"), ("traceparent", CALLER), ("tracestate", "a=1"),
                ("tracestate", "b=2"))  # fmt: skip
    with serving(configure(folder, model("mlp"))) as up, traced(up, listening.listener.path):
        before = time.time_ns()
        _, call = up.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").with_call(
            message.SerializeToString(), metadata=metadata, timeout=20
        )
        after = time.time_ns()
        [got] = listening.take_spans(1)
        until(lambda: up.gateway.tap is not None and up.gateway.tap._told.empty, "acknowledged")
        assert up.gateway.page.server_counters()["spans_dropped"] == 0
    assert child(got)
    assert got.tracestate == "a=1,b=2"
    assert (got.request_id, got.model, got.version, got.variant) == ("abc", "mlp", "1", "onnx")
    assert (got.transport, got.outcome, got.rows, got.client_span) == ("grpc", "OK", 3, 0)
    assert (got.executed, got.cached, got.fallback) == (True, False, "")
    assert got.bytes_in == len(message.SerializeToString())
    assert got.bytes_out > 0
    slack_ns = 50_000_000  # between two readings of two clocks
    assert before - slack_ns < got.start_ns < got.end_ns < after + slack_ns
    stages = got.queue_ns, got.decode_ns, got.execute_ns, got.encode_ns
    assert min(stages[1:]) > 0
    assert sum(stages) <= got.end_ns - got.start_ns
    assert not {"traceparent", "tracestate"} & {k for k, _ in call.trailing_metadata()}


def test_http(folder: Path, listening: Listening) -> None:
    headers = [("x-request-id", "h"), ("traceparent", CALLER), ("tracestate", "a=1"),
               ("tracestate", "b=2")]  # fmt: skip
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path),
        over_http(up, folder) as client,
    ):
        reply = client.post("/v2/models/any/versions/1/infer", json=JSON, headers=headers)
        [got] = listening.take_spans(1)
    assert reply.status_code == 200
    assert not {"traceparent", "tracestate"} & set(reply.headers)
    assert child(got)
    assert got.tracestate == "a=1,b=2"
    assert (got.transport, got.request_id, got.variant) == ("http", "h", "onnx")
    assert got.bytes_out == len(reply.content)


def test_each_request_of_a_stream(folder: Path, listening: Listening) -> None:
    bodies = [small(id=str(n)).SerializeToString() for n in range(20)]
    metadata = (("x-request-id", "s"), ("traceparent", CALLER), ("tracestate", "a=1"))
    with serving(configure(folder, model("any"))) as up, traced(up, listening.listener.path):
        assert len(list(up.stream(iter(bodies), metadata=metadata))) == 20
        got = listening.take_spans(20)
        list(up.stream(iter(bodies)))
        roots = listening.take_spans(20)
    assert {one.request_id for one in got} == {f"s.{n}" for n in range(20)}
    assert len({one.traceparent for one in got}) == 20
    assert all(child(one) and one.tracestate == "a=1" for one in got)
    assert {one.transport for one in got} == {"stream"}
    assert len({trace_of(one) for one in roots}) == 20  # nobody has begun their trace
    assert {one.parent_id for one in roots} == {0}


def test_what_was_cached_and_what_was_joined(folder: Path, listening: Listening) -> None:
    batched = model("any", batching={"max_size": 8, "max_delay_ms": 1})
    config = configure(folder, model("mlp", cache=True), batched, cache={"max_bytes": 2**20})
    with serving(config) as up, traced(up, listening.listener.path):
        up.infer(mlp_request())
        up.infer(mlp_request())
        first, second = listening.take_spans(2)
        up.infer(request("any", {"x": np.ones((2, 2), np.float32)}))
        [joined] = listening.take_spans(1)
    assert (first.cached, first.executed) == (False, True)
    assert (second.cached, second.executed, second.execute_ns) == (True, False, 0)
    assert (joined.executed, joined.rows) == (False, 2)
    assert joined.execute_ns > 0


# --- the caller's decision ------------------------------------------------------------------------


def test_who_is_not_sampled_leaves_nothing(folder: Path, listening: Listening) -> None:
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path, ratio=0.0),
        over_http(up, folder) as client,
    ):
        headers = {"traceparent": QUIET_CALLER}
        up.infer(small())
        up.infer(small(), metadata=tuple(headers.items()))
        list(up.stream(iter([small().SerializeToString()]), metadata=tuple(headers.items())))
        client.post("/v2/models/any/infer", json=JSON, headers=headers)
        client.post("/v2/models/nobody/infer", json=JSON, headers=headers)
        nothing_else(up, listening)


@pytest.mark.parametrize(
    "sent",
    ["rubbish", CALLER.upper(), f"00-{'0' * 32}-{SPAN}-01", f"{CALLER}-more", "", "ff" * 2000],
    ids=["rubbish", "capitals", "no trace", "too long", "empty", "huge"],
)
def test_a_header_that_says_nothing_begins_a_trace(
    folder: Path, listening: Listening, sent: str
) -> None:
    pairs = [("traceparent", sent), ("tracestate", "a=1")]
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path),
        over_http(up, folder) as client,
    ):
        up.infer(small(), metadata=pairs)
        list(up.stream(iter([small().SerializeToString()]), metadata=pairs))
        assert client.post("/v2/models/any/infer", json=JSON, headers=pairs).status_code == 200
        got = listening.take_spans(3)
    assert {one.transport for one in got} == {"grpc", "stream", "http"}
    for one in got:
        assert (one.parent_id, one.tracestate) == (0, "")
        assert trace_of(one) not in (TRACE, "0" * 32)


def test_two_contexts_over_http_are_none(folder: Path, listening: Listening) -> None:
    """(Over gRPC the library keeps one of them.)"""
    pairs = [("traceparent", CALLER), ("traceparent", CALLER), ("tracestate", "a=1")]
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path),
        over_http(up, folder) as client,
    ):
        assert client.post("/v2/models/any/infer", json=JSON, headers=pairs).status_code == 200
        [got] = listening.take_spans(1)
    assert (got.parent_id, got.tracestate) == (0, "")


# --- what failed ----------------------------------------------------------------------------------


def test_each_failure_leaves_a_record(folder: Path, listening: Listening) -> None:
    context = (("traceparent", CALLER), ("x-request-id", "f"))

    def fail(_: Any) -> list[Any]:
        text = "out of memory"
        raise ExecutionError(text)

    def break_down(_: Any) -> list[Any]:
        text = "a bug"
        raise KeyError(text)

    with serving(configure(folder, model("mlp"), model("any"))) as up:
        up.put("any", fail)
        up.put("mlp", break_down)
        with traced(up, listening.listener.path):
            bodies = {
                "ExecutionError": small().SerializeToString(),
                "InvalidRequestError": request("any", {"z": np.ones((1, 2))}).SerializeToString(),
                "NotFoundError": request("nobody", {}).SerializeToString(),
                "KeyError": mlp_request().SerializeToString(),
            }
            for body in (*bodies.values(), b"\xff\xff"):
                with pytest.raises(grpc.RpcError):
                    up.infer_bytes(body, metadata=context)
            got = listening.take_spans(5)
    assert [one.outcome for one in got] == [*bodies, "InvalidRequestError"]
    assert all(child(one) and one.request_id == "f" for one in got)
    assert [(one.model, one.variant) for one in got] == [
        ("any", "onnx"), ("any", "onnx"), ("nobody", ""), ("mlp", "onnx"), ("", ""),
    ]  # fmt: skip
    assert got[0].execute_ns > 0  # it had got so far
    assert got[1].execute_ns == 0
    assert got[-1].bytes_in == 2
    assert all(one.bytes_out == 0 and one.end_ns >= one.start_ns for one in got)


def test_failures_of_a_stream_and_of_http(folder: Path, listening: Listening) -> None:
    context = {"traceparent": CALLER, "x-request-id": "f"}
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path),
        over_http(up, folder) as client,
    ):
        bodies = [b"\xff\xff", request("nobody", {}).SerializeToString()]
        assert len(list(up.stream(iter(bodies), metadata=tuple(context.items())))) == 2
        streamed = listening.take_spans(2)
        client.post("/v2/models/any/infer", content=b"{", headers=context)
        client.post("/v2/models/nobody/infer", json=JSON, headers=context)
        refused = client.post("/v2/models/any/infer", content=bytes(9000), headers=context)
        posted = listening.take_spans(3)
    assert refused.status_code == 413
    found = [(one.transport, one.outcome, one.model) for one in streamed + posted]
    assert sorted(found[:2]) == [
        ("stream", "InvalidRequestError", ""), ("stream", "NotFoundError", "nobody"),
    ]  # fmt: skip
    assert found[2:] == [
        ("http", "InvalidRequestError", "any"), ("http", "NotFoundError", "nobody"),
        ("http", "InvalidRequestError", "any"),
    ]  # fmt: skip
    assert {one.request_id for one in streamed} == {"f.0", "f.1"}
    assert all(child(one) for one in streamed + posted)


@contextmanager
def held(up: Served) -> Iterator[threading.Event]:
    """While this is open the model ``any`` answers nothing; the event: it was asked."""
    entered, let_go = threading.Event(), threading.Event()

    def wait(inputs: Any) -> list[Any]:
        entered.set()
        let_go.wait(30)
        return [inputs["x"]]

    up.put("any", wait)
    try:
        yield entered
    finally:
        let_go.set()


@pytest.mark.parametrize("bound", [{"max_requests": 1}, {"max_bytes": 4096}])
def test_what_was_refused(folder: Path, listening: Listening, bound: dict[str, int]) -> None:
    """Before its body was read, or when it had come."""
    large = request("any", {"x": np.ones((1, 1000), np.float32)}).SerializeToString()
    context = (("traceparent", CALLER), ("x-request-id", "refused"))
    infer = "/inference.GRPCInferenceService/ModelInfer"
    with (
        serving(configure(folder, model("any"), admission=bound)) as up,
        traced(up, listening.listener.path),
        over_http(up, folder) as client,
    ):
        with held(up) as entered:
            first = up.channel.unary_unary(infer).future(large, timeout=20)
            assert entered.wait(20)
            with pytest.raises(grpc.RpcError) as caught:
                up.infer_bytes(large, metadata=context)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            [element] = up.stream(iter([large]), metadata=context)
            assert element.error_message
            reply = client.post("/v2/models/any/infer", content=bytes(4096), headers=dict(context))
            assert reply.status_code == 429
            got = listening.take_spans(3)
        first.result()
        listening.take_spans(1)
        nothing_else(up, listening)
    assert [one.transport for one in got] == ["grpc", "stream", "http"]
    assert {one.outcome for one in got} == {"OverloadedError"}
    assert [one.request_id for one in got] == ["refused", "refused.0", "refused"]
    assert got[0].bytes_in == (len(large) if "max_bytes" in bound else 0)
    assert all(child(one) and one.variant == "" for one in got)


def test_who_goes_away_and_who_comes_too_late(folder: Path, listening: Listening) -> None:
    infer = "/inference.GRPCInferenceService/ModelInfer"
    with (
        serving(configure(folder, model("any"), pool={"running": 1})) as up,
        traced(up, listening.listener.path),
    ):
        with held(up) as entered:
            call = up.channel.unary_unary(infer)
            first = call.future(small().SerializeToString(), timeout=20)
            assert entered.wait(20)
            queued = call.future(
                small().SerializeToString(), timeout=20, metadata=(("x-request-id", "gone"),)
            )
            until(lambda: up.gateway.admission.requests == 2, "it waits for the thread")
            queued.cancel()
            # On the same connection after it: then the server has heard of the other one, too.
            live = up.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=20)
        first.result()
        served, gone = listening.take_spans(2)
        nothing_else(up, listening)
    assert (served.outcome, gone.outcome, gone.request_id) == ("OK", "CancelledError", "gone")
    assert gone.queue_ns > 0


# --- fallbacks, mirrors, log records --------------------------------------------------------------


def test_a_fallback_is_one_record_and_its_log_has_the_trace(
    folder: Path, listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> list[Any]:
        text = "out of memory"
        raise ExecutionError(text)

    both = model("any", variant("any"), variant("any", "1", "fallback", name="spare"))
    caplog.set_level(logging.INFO, "sidecar")
    with serving(configure(folder, both)) as up, traced(up, listening.listener.path):
        up.put("any", fail)
        up.infer(small(), metadata=(("traceparent", CALLER),))
        up.infer(small(), metadata=(("traceparent", QUIET_CALLER),))
        [got] = listening.take_spans(1)
        until(lambda: len(listening.logs) == 2, "the records have come")
        nothing_else(up, listening)
    assert (got.outcome, got.variant, got.fallback) == ("OK", "spare", "any:1/onnx")
    said = [one["body"] for one in listening.logs[:2]]
    assert said == ["any:1/onnx failed, any:1/spare answers: out of memory"] * 2
    assert [one["traceparent"] for one in listening.logs[:2]] == [got.traceparent, ""]


def test_an_exchange_names_the_requests_own_span(folder: Path, listening: Listening) -> None:
    """A mirror links to it, and is recorded only if it is."""
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path, mirrored=True),
    ):
        up.infer(small(), metadata=(("traceparent", CALLER),))
        [exchange] = listening.take(1)
        [span] = listening.take_spans(1)
        up.infer(small(), metadata=(("traceparent", QUIET_CALLER),))
        [quiet] = listening.take(1)
    assert exchange.traceparent == span.traceparent
    assert quiet.traceparent == QUIET_CALLER


def test_models_that_are_not_mirrored_are_traced_all_the_same(
    folder: Path, listening: Listening
) -> None:
    with serving(configure(folder, model("any"))) as up, traced(up, listening.listener.path):
        up.infer(small())
        listening.take_spans(1)
        found = up.gateway.page.server_counters()
    assert not any(count for name, count in found.items() if name.startswith("tap_"))
    assert listening.exchanges == []


# --- bounds ---------------------------------------------------------------------------------------


def test_without_a_monitor_they_are_counted(folder: Path, tmp_path: Path) -> None:
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, tmp_path / "nobody.sock", connect=False),
    ):
        for _ in range(5):
            up.infer(small())
        until(lambda: up.gateway.page.server_counters()["spans_dropped"] == 5, "they are counted")


def test_what_waits_at_the_end_arrives(folder: Path, listening: Listening) -> None:
    with serving(configure(folder, model("any"))) as up, traced(up, listening.listener.path):
        for _ in range(100):
            up.infer(small())
    assert len(listening.spans) == 100


def test_a_thread_that_sleeps_is_woken(
    folder: Path, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when what waits is more than may be unacknowledged, and room comes later."""
    monkeypatch.setattr("sidecar.gateway.tap._TELL_S", 3600)
    with (
        serving(configure(folder, model("any"))) as up,
        traced(up, listening.listener.path) as tap,
    ):
        told = tap._told.spans
        assert told is not None
        told._sent_max = 3
        until(lambda: tap._asleep, "it sleeps")
        listening.gate.clear()
        for _ in range(10):
            up.infer(small())
        until(lambda: told._sent == 3, "it may send no more")
        until(lambda: tap._asleep, "it sleeps again")
        listening.gate.set()
        assert len(listening.take_spans(10)) == 10
