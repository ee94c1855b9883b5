"""In front of another server: what it is told of the trace, and what the record says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from exporters.telemetry.context import parse
from sidecar.traces import SpanRecord
from tests.gateway.served import Served, configure, make_models, model, request, serving, variant
from tests.gateway.test_spans import (
    CALLER,
    QUIET_CALLER,
    SPAN,
    TRACE,
    child,
    over_http,
    trace_of,
    traced,
)
from tests.monitor.listening import Listening, until
from tests.support.upstream import Call, Hanging, Model, Upstream

CONTEXT = (("traceparent", CALLER), ("tracestate", "a=1"), ("tracestate", "b=2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with Listening(tmp_path / "tap.sock") as made:
        yield made


@pytest.fixture
def other() -> Iterator[Upstream]:
    with Upstream(Model(name="any")) as made:
        yield made


def there(other: Upstream, **settings: Any) -> dict[str, Any]:
    return {
        "name": "there", "version": "1", "roles": ["serving"],
        "runtime": {"kind": "remote", "address": other.address}, **settings,
    }  # fmt: skip


@contextmanager
def in_front(folder: Path, other: Upstream, **settings: Any) -> Iterator[Served]:
    with serving(configure(folder, model("any", there(other)), **settings)) as up:
        yield up


def message() -> Any:
    return request("any", {"x": np.ones((1, 4), np.float32)})


def context_of(call: Call) -> tuple[str, str]:
    """The trace context that it came with: one header of each at most."""
    parents = [str(value) for key, value in call.pairs if key == "traceparent"]
    states = [str(value) for key, value in call.pairs if key == "tracestate"]
    assert len(parents) <= 1
    assert len(states) <= 1
    return "".join(parents), "".join(states)


def assert_is_under(call: Call, record: SpanRecord, state: str = "a=1,b=2") -> None:
    """The other server's span has our CLIENT span as its parent."""
    assert record.client_span
    assert f"{record.client_span:016x}" not in record.traceparent
    header = f"00-{trace_of(record)}-{record.client_span:016x}-{record.traceparent[-2:]}"
    assert context_of(call) == (header, state)


def test_unary(folder: Path, listening: Listening, other: Upstream) -> None:
    with in_front(folder, other) as up, traced(up, listening.listener.path):
        up.infer(message(), metadata=CONTEXT)
        [got] = listening.take_spans(1)
        up.infer(message())
        [root] = listening.take_spans(1)
    assert child(got)
    assert (got.variant, got.transport, got.outcome) == ("there", "grpc", "OK")
    assert got.execute_ns > 0
    assert_is_under(other.calls[0], got)
    assert (root.parent_id, root.tracestate) == (0, "")
    assert_is_under(other.calls[1], root, "")


def test_http(folder: Path, listening: Listening, other: Upstream) -> None:
    with (
        in_front(folder, other) as up,
        traced(up, listening.listener.path),
        over_http(up, folder) as client,
    ):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        reply = client.post(
            "/v2/models/any/infer", json={"inputs": [tensor]}, headers=list(CONTEXT)
        )
        assert reply.status_code == 200
        [got] = listening.take_spans(1)
    assert child(got)
    assert got.transport == "http"
    assert_is_under(other.calls[0], got)


def test_a_stream_is_one_call_there(folder: Path, listening: Listening, other: Upstream) -> None:
    """It belongs to the first request; each has a CLIENT span of its own."""
    bodies = [message().SerializeToString() for _ in range(5)]
    with in_front(folder, other) as up, traced(up, listening.listener.path):
        assert len(list(up.stream(iter(bodies), metadata=(*CONTEXT, ("x-request-id", "s"))))) == 5
        got = {one.request_id: one for one in listening.take_spans(5)}
    assert len(other.calls) == 1
    assert_is_under(other.calls[0], got["s.0"])
    assert all(child(one) and one.transport == "stream" for one in got.values())
    assert len({one.client_span for one in got.values()} - {0}) == 5
    assert all(one.execute_ns > 0 for one in got.values())


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_who_is_not_sampled_is_handed_on_as_it_came(
    folder: Path, listening: Listening, other: Upstream, kind: str
) -> None:
    context = (("traceparent", QUIET_CALLER), ("tracestate", "a=1"))
    with in_front(folder, other) as up, traced(up, listening.listener.path):
        if kind == "unary":
            up.infer(message(), metadata=context)
        else:
            list(up.stream(iter([message().SerializeToString()]), metadata=context))
        up.infer(message(), metadata=(("traceparent", CALLER),))
        listening.take_spans(1)
        assert listening.spans == []
    assert context_of(other.calls[0]) == (QUIET_CALLER, "a=1")


def test_a_trace_that_is_not_recorded_here_is_not_recorded_there(
    folder: Path, listening: Listening, other: Upstream
) -> None:
    with in_front(folder, other) as up, traced(up, listening.listener.path, ratio=0.0):
        up.infer(message())
        up.infer(message(), metadata=(("traceparent", "rubbish"), ("tracestate", "a=1")))
    for call in other.calls:
        header, state = context_of(call)
        found = parse(header)
        assert found is not None
        assert (found.sampled, state) == (False, "")


def test_where_nothing_is_traced_everything_goes_on_as_it_came(
    folder: Path, other: Upstream
) -> None:
    with in_front(folder, other) as up:
        up.infer(message(), metadata=CONTEXT)
        up.infer(message(), metadata=(("traceparent", "rubbish"),))
        list(up.stream(iter([message().SerializeToString()]), metadata=CONTEXT))
    sent = [[p for p in call.pairs if p[0].startswith("trace")] for call in other.calls]
    assert sent == [list(CONTEXT), [("traceparent", "rubbish")], list(CONTEXT)]


def test_a_failure_there(folder: Path, listening: Listening, other: Upstream) -> None:
    def infer(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.INTERNAL, "no")
        raise AssertionError

    other.infer = infer
    with in_front(folder, other) as up, traced(up, listening.listener.path):
        with pytest.raises(grpc.RpcError):
            up.infer(message(), metadata=CONTEXT)
        with pytest.raises(grpc.RpcError):
            up.infer_bytes(request("nobody", {}).SerializeToString(), metadata=CONTEXT)
        failed, unknown = listening.take_spans(2)
    assert (failed.outcome, failed.variant) == ("UpstreamError", "there")
    assert failed.execute_ns > 0
    assert_is_under(other.calls[0], failed)
    assert (unknown.outcome, unknown.model, unknown.variant) == ("NotFoundError", "nobody", "")
    assert unknown.client_span == 0


def test_a_stream_that_breaks_leaves_a_record_of_each_request(
    folder: Path, listening: Listening, other: Upstream
) -> None:
    def stream(bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from other.identity_stream(iter([next(bodies)]), context)
        next(bodies)
        context.abort(grpc.StatusCode.INTERNAL, "no")

    other.stream = stream
    with in_front(folder, other) as up, traced(up, listening.listener.path):
        bodies = [message().SerializeToString() for _ in range(2)]
        with pytest.raises(grpc.RpcError):
            list(up.stream(iter(bodies), metadata=CONTEXT))
        first, second = listening.take_spans(2)
    assert (first.outcome, second.outcome) == ("OK", "UpstreamError")
    assert child(first)
    assert child(second)


def test_a_fallback_in_process(folder: Path, listening: Listening, other: Upstream) -> None:
    """One record: of the variant that answered, which asked nobody."""

    def infer(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")
        raise AssertionError

    other.infer = infer
    both = model("any", there(other), variant("any", "1", "fallback", name="spare"))
    with serving(configure(folder, both)) as up, traced(up, listening.listener.path):
        up.infer(message(), metadata=CONTEXT)
        [got] = listening.take_spans(1)
    assert child(got)
    assert (got.variant, got.fallback, got.client_span) == ("spare", "any:1/there", 0)
    assert context_of(other.calls[0])[0].startswith(f"00-{TRACE}-")
    assert SPAN not in context_of(other.calls[0])[0]


def test_a_fallback_on_another_server(folder: Path, listening: Listening, other: Upstream) -> None:
    def infer(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, "no")
        raise AssertionError

    other.infer = infer
    with Upstream(Model(name="any")) as spare:
        both = model("any", there(other), there(spare, name="spare", roles=["fallback"]))
        with serving(configure(folder, both)) as up, traced(up, listening.listener.path):
            up.infer(message(), metadata=CONTEXT)
            [got] = listening.take_spans(1)
        assert (got.variant, got.fallback) == ("spare", "any:1/there")
        assert_is_under(spare.calls[0], got)
        assert_is_under(other.calls[0], got)


def test_an_answer_from_the_cache_asks_nobody(
    folder: Path, listening: Listening, other: Upstream
) -> None:
    cached = model("any", there(other), cache=True)
    config = configure(folder, cached, cache={"max_bytes": 2**20})
    with serving(config) as up, traced(up, listening.listener.path):
        up.infer(message(), metadata=CONTEXT)
        up.infer(message(), metadata=CONTEXT)
        first, second = listening.take_spans(2)
    assert_is_under(other.calls[0], first)
    assert (second.cached, second.client_span, len(other.calls)) == (True, 0, 1)


def test_a_client_that_goes_away(folder: Path, listening: Listening, other: Upstream) -> None:
    hanging = Hanging(other)
    other.infer = hanging
    with in_front(folder, other) as up, traced(up, listening.listener.path):
        call = up.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        future = call.future(message().SerializeToString(), timeout=20, metadata=CONTEXT)
        assert hanging.entered.wait(20)
        future.cancel()
        assert hanging.cancelled.wait(20)
        [got] = listening.take_spans(1)
        until(up.gateway.admission.idle, "it is over")
    assert got.outcome == "CancelledError"
    assert_is_under(other.calls[0], got)
