"""Backends that are dead, slow, or lie: nobody waits for them, and everything is counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from exporters.telemetry import Bounds, Exporter, Signal
from exporters.telemetry.delivery import FIRST_RETRY_S, Delivery, SendError, Sent
from tests.exporters.telemetry.support import LONG_S, RECEIVERS, points, settings, span, telling
from tests.support.otlp_receiver import (
    GrpcReceiver,
    HttpReceiver,
    Receiver,
    Reply,
    always,
    dripping,
    wait_for,
)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level("CRITICAL", logger="exporters.telemetry")


@pytest.fixture(params=list(RECEIVERS), ids=str)
def exporter(request) -> Exporter:
    return request.param


@pytest.fixture
def backend(exporter: Exporter) -> Iterator[Receiver]:
    with RECEIVERS[exporter]() as receiver:
        yield receiver


RETRYABLE = {
    Exporter.OTLP_GRPC: [
        Reply(grpc.StatusCode.UNAVAILABLE),
        Reply(grpc.StatusCode.ABORTED),
        Reply(grpc.StatusCode.RESOURCE_EXHAUSTED, after_s=0),
    ],
    Exporter.OTLP_HTTP: [Reply(503), Reply(429, after_s=0), Reply(502), Reply(504)],
}
PERMANENT = {
    Exporter.OTLP_GRPC: [
        Reply(grpc.StatusCode.INVALID_ARGUMENT, message="bad"),
        Reply(grpc.StatusCode.UNAUTHENTICATED, message="who?"),
        Reply(grpc.StatusCode.RESOURCE_EXHAUSTED, message="too large, and no word of when"),
        Reply(grpc.StatusCode.UNIMPLEMENTED),
    ],
    Exporter.OTLP_HTTP: [Reply(400), Reply(401), Reply(404), Reply(413), Reply(500), Reply(302)],
}
GARBAGE = {
    Exporter.OTLP_GRPC: [Reply(body=b"\xff\xff\xff")],
    Exporter.OTLP_HTTP: [
        Reply(body=b"\xff\xff\xff"),
        Reply(body=b"<html>please log in</html>", kind="text/html"),
        Reply(body=b"{not json", kind="application/json"),
        Reply(body=b"x" * 200_000, kind="text/html"),
    ],
}


def cases(table) -> list:
    return [
        pytest.param(exporter, reply, id=f"{exporter}-{reply.code or reply.kind}-{number}")
        for exporter, replies in table.items()
        for number, reply in enumerate(replies)
    ]


@pytest.mark.parametrize(("exporter", "fault"), cases(RETRYABLE))
def test_what_may_be_tried_again_is(exporter, fault):
    with RECEIVERS[exporter]() as backend:
        backend.reply = lambda signal: fault if len(backend.of("traces")) < 2 else Reply()
        with telling(settings(exporter, backend.endpoint)) as telemetry:
            telemetry.span(span())
            backend.wait(lambda it: len(it.of("traces")) == 2)
            wait_for(lambda: telemetry.counts().get((Signal.TRACES, "exported", "")) == 1)
            assert not any(outcome == "dropped" for _, outcome, _ in telemetry.counts())
            assert telemetry.states()[Signal.TRACES].up


@pytest.mark.parametrize(("exporter", "fault"), cases(PERMANENT))
def test_what_is_refused_is_dropped_at_once(exporter, fault):
    with RECEIVERS[exporter]() as backend:
        backend.reply = always(fault)
        with telling(settings(exporter, backend.endpoint)) as telemetry:
            telemetry.span(span())
            wait_for(lambda: telemetry.counts().get((Signal.TRACES, "dropped", "refused")) == 1)
            assert len(backend.of("traces")) == 1
            state = telemetry.states()[Signal.TRACES]
            assert not state.up
            code = fault.code.name if isinstance(fault.code, grpc.StatusCode) else str(fault.code)
            assert state.error.startswith(code)
            backend.reply = always(Reply())
            telemetry.span(span())
            assert telemetry.flush(LONG_S)
            assert telemetry.states()[Signal.TRACES].up


@pytest.mark.parametrize(("exporter", "fault"), cases(GARBAGE))
def test_an_answer_that_is_none_is_no_success(exporter, fault):
    with RECEIVERS[exporter]() as backend:
        backend.reply = always(fault)
        with telling(settings(exporter, backend.endpoint)) as telemetry:
            telemetry.span(span())
            wait_for(lambda: telemetry.counts().get((Signal.TRACES, "dropped", "garbage")) == 1)
            assert "no answer of OTLP" in telemetry.states()[Signal.TRACES].error


@pytest.mark.parametrize("kind", ["application/json", "application/x-protobuf", "text/plain"])
def test_answers_that_say_nothing_are_answers(kind):
    with HttpReceiver() as backend:
        body = b"{}" if kind == "application/json" else b""
        backend.reply = always(Reply(body=body, kind=kind))
        with telling(settings(Exporter.OTLP_HTTP, backend.endpoint)) as telemetry:
            telemetry.span(span())
            assert telemetry.flush(LONG_S)
            assert telemetry.counts()[Signal.TRACES, "exported", ""] == 1


@pytest.mark.parametrize(("claimed", "counted"), [(3, 3), (0, 0), (10_000, 5), (-7, 0)])
def test_partial_success_is_counted_and_not_tried_again(exporter, backend, claimed, counted):
    partial = Reply(rejected=claimed, message="no such tenant")
    backend.reply = lambda signal: partial if signal == "traces" else Reply()
    told = settings(exporter, backend.endpoint, spans=Bounds(delay_s=30.0))
    with telling(told) as telemetry:
        for number in range(1, 6):
            telemetry.span(span(number))
        assert telemetry.flush(LONG_S)
        counts = telemetry.counts()
        assert counts[Signal.TRACES, "exported", ""] == 5 - counted
        assert counts.get((Signal.TRACES, "dropped", "rejected"), 0) == counted
        assert len(backend.of("traces")) == 1
        error = telemetry.states()[Signal.TRACES].error
        assert ("no such tenant" in error) == bool(counted)


def test_a_backend_that_hangs_is_given_up_on_and_tried_again(exporter, backend):
    released = threading.Event()

    def hang_once(signal: str) -> Reply:
        if len(backend.of(signal)) == 1:
            released.wait(LONG_S)
        return Reply()

    backend.reply = hang_once
    with telling(settings(exporter, backend.endpoint, timeout_s=0.2)) as telemetry:
        telemetry.span(span())
        backend.wait(lambda it: len(it.of("traces")) >= 2)
        released.set()
        wait_for(lambda: telemetry.counts()[Signal.TRACES, "exported", ""] == 1)


def test_an_answer_that_never_ends_is_not_listened_to_for_ever():
    with dripping() as port:
        told = settings(Exporter.OTLP_HTTP, f"http://127.0.0.1:{port}", timeout_s=0.2, retry_s=0.0)
        with telling(told) as telemetry:
            telemetry.span(span())
            wait_for(lambda: telemetry.counts().get((Signal.TRACES, "dropped", "retries")) == 1)


def test_a_backend_that_was_restarted_costs_no_attempt():
    """A kept connection that the other side has closed is no failure."""
    with HttpReceiver() as backend:
        told = settings(Exporter.OTLP_HTTP, backend.endpoint, retry_s=0.0)
        with telling(told) as telemetry:
            for number in range(1, 4):
                telemetry.span(span(number))
                assert telemetry.flush(LONG_S)
                backend._server.hang_up()
            assert telemetry.counts()[Signal.TRACES, "exported", ""] == 3
            assert not any(outcome == "dropped" for _, outcome, _ in telemetry.counts())


def test_a_backend_that_comes_late_gets_what_still_waits():
    with GrpcReceiver() as first:
        endpoint = first.endpoint
        with telling(settings(Exporter.OTLP_GRPC, endpoint)) as telemetry:
            telemetry.span(span(1))
            assert telemetry.flush(LONG_S)
            first.reply = always(Reply(grpc.StatusCode.UNAVAILABLE))
            telemetry.span(span(2))
            first.wait(lambda it: len(it.of("traces")) >= 2)
            first.reply = always(Reply())
            wait_for(lambda: telemetry.counts()[Signal.TRACES, "exported", ""] == 2)


def test_the_queue_is_bounded_and_the_oldest_go(exporter, backend):
    released = threading.Event()

    def hold(_: str) -> Reply:
        released.wait(LONG_S)
        return Reply()

    backend.reply = hold
    told = settings(exporter, backend.endpoint, spans=Bounds(items=20, slice=5, delay_s=0.0))
    with telling(told) as telemetry:
        telemetry.span(span(1))
        backend.wait(lambda it: it.of("traces"))  # the first one is in hand
        for number in range(2, 1002):
            telemetry.span(span(number))
            assert telemetry.waiting()[Signal.TRACES] <= 25
        released.set()
        assert telemetry.flush(LONG_S)
        counts = telemetry.counts()
    assert counts[Signal.TRACES, "dropped", "queue_full"] == 980
    assert counts[Signal.TRACES, "exported", ""] == 21
    ids = [int.from_bytes(one.span_id) for one in backend.spans]
    assert ids == [1, *range(982, 1002)]


def test_metrics_that_were_lost_are_made_up_for(exporter, backend):
    refuse = Reply(grpc.StatusCode.INTERNAL if exporter is Exporter.OTLP_GRPC else 500)
    backend.reply = always(refuse)
    with telling(settings(exporter, backend.endpoint)) as telemetry:
        telemetry.observe(points)
        assert not telemetry.flush(LONG_S), "they were not taken"
        backend.reply = always(Reply())
        assert telemetry.flush(LONG_S)
    items = backend.metrics()["model_sidecar.telemetry.items"].sum.data_points
    assert any(one.as_int >= 4 for one in items), "what was refused is counted, and told"
    assert "model_sidecar.requests" in backend.metrics()


class Scripted:
    """A sender of which each attempt goes as the script says; the last line is repeated."""

    def __init__(self, *script: SendError | None) -> None:
        self.script, self.timeouts = list(script), []

    def send(self, payload: bytes, timeout_s: float) -> Sent:
        self.timeouts.append(timeout_s)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if step is not None:
            raise step
        return Sent()

    def close(self) -> None:
        pass


def test_attempts_end_with_the_bound_on_trying_again():
    sender = Scripted(SendError("retries", "down", retry=True))
    delivery = Delivery(Signal.TRACES, sender, timeout_s=3.0, retry_s=0.0, name="there")
    outcome = delivery.deliver(b"", 7)
    assert (outcome.exported, dict(outcome.dropped)) == (0, {"retries": 7})
    assert len(sender.timeouts) == 1


def test_back_off_grows_over_slices_and_ends_with_a_success():
    down = SendError("retries", "down", retry=True)
    sender = Scripted(down, down, down, None)
    delivery = Delivery(Signal.TRACES, sender, timeout_s=3.0, retry_s=0.0, name="there")
    delivery.close(float("inf"))  # no pauses: only how long they would be is looked at
    pauses = []
    for _ in range(3):
        delivery.deliver(b"", 1)
        pauses.append(delivery._backoff_s)
    assert pauses == [FIRST_RETRY_S * 2, FIRST_RETRY_S * 4, FIRST_RETRY_S * 8]
    assert delivery.deliver(b"", 1).exported == 1
    assert delivery._backoff_s == FIRST_RETRY_S


def test_a_bug_of_a_library_ends_no_thread():
    sender = Scripted(ZeroDivisionError("oh"))
    delivery = Delivery(Signal.TRACES, sender, timeout_s=3.0, retry_s=60.0, name="there")
    assert dict(delivery.deliver(b"", 2).dropped) == {"refused": 2}
    assert "ZeroDivisionError" in delivery.state.error
