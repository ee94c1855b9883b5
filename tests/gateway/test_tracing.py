"""Whose trace a request belongs to, whether it is recorded, and what the record says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from exporters.telemetry.context import RANDOM, SAMPLED, parse
from sidecar.gateway.backlog import Told
from sidecar.gateway.messages import InferRequest
from sidecar.gateway.pages import Page, Timing, create_page
from sidecar.gateway.tracing import (
    Traced,
    Tracing,
    Untraced,
    context_of,
    current,
    working_on,
)
from sidecar.traces import SpanRecord

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED_CALLER, UNSAMPLED_CALLER = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
WALL_NS = 1_700_000_000 * 10**9


class FixedClock:
    def now_ns(self) -> int:
        return WALL_NS

    def monotonic_ns(self) -> int:
        return 0


@pytest.fixture
def told() -> Iterator[Told]:
    descriptor = create_page(1)
    page = Page(descriptor, 1, owner=True)
    os.close(descriptor)
    made = Told(page, spans=True, logs=False)
    assert made.spans is not None
    made.spans.open()
    yield made
    page.close()


def tracing(told: Told, ratio: float = 1.0, *, parent: bool = True) -> Tracing:
    settings = {"on": True, "ratio": ratio, "parent": parent, "logs": False}
    assert told.spans is not None
    return Tracing(settings, told.spans, FixedClock())


def headers(trace: Traced | Untraced) -> dict[str, str]:
    found = trace.headers()
    assert len(dict(found)) == len(found)
    return dict(found)


# --- the decision ---------------------------------------------------------------------------------


def test_a_callers_sampled_trace_goes_on_here(told: Told) -> None:
    trace = tracing(told, 0.0).begin(SAMPLED_CALLER, "a=b, c=d")
    assert isinstance(trace, Traced)
    assert f"{trace.trace_id:032x}" == TRACE
    assert f"{trace.parent_id:016x}" == SPAN
    assert trace.state == "a=b,c=d"
    mine = parse(trace.traceparent)
    assert mine is not None
    assert (mine.span_id, mine.sampled) == (trace.span_id, True)
    assert trace.span_id not in (trace.parent_id, 0)
    assert context_of(trace) == parse(trace.traceparent, "a=b,c=d")


def test_another_server_is_told_of_one_span_however_often_it_is_asked(told: Told) -> None:
    trace = tracing(told).begin(SAMPLED_CALLER, "a=b")
    assert isinstance(trace, Traced)
    assert trace.client_span == 0
    sent = headers(trace)
    assert sent == {"traceparent": f"00-{TRACE}-{trace.client_span:016x}-01", "tracestate": "a=b"}
    assert trace.client_span not in (trace.span_id, trace.parent_id, 0)
    assert headers(trace) == sent


@pytest.mark.parametrize("state", ["", "a=b"])
def test_a_caller_that_does_not_sample_is_handed_on_as_it_is(told: Told, state: str) -> None:
    trace = tracing(told).begin(UNSAMPLED_CALLER, state)
    assert isinstance(trace, Untraced)
    assert trace.traceparent == UNSAMPLED_CALLER
    assert headers(trace).get("tracestate", "") == state
    assert headers(trace)["traceparent"] == UNSAMPLED_CALLER


def test_the_fast_way_decides_as_the_parser_does(told: Told) -> None:
    """A context that says "not sampled" is not parsed whole; it must be a context all the same."""
    begin = tracing(told).begin
    for wrong in (
        f"00-{'0' * 32}-{SPAN}-00", f"00-{TRACE}-{'0' * 16}-00", f"00-{TRACE.upper()}-{SPAN}-00",
        f"ff-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00-more", f"00-{TRACE}-{SPAN}-0g",
    ):  # fmt: skip
        trace = begin(wrong, "a=b")
        assert parse(wrong) is None
        assert isinstance(trace, Traced)  # it began here, and everything that does is recorded
        assert (trace.parent_id, trace.state) == (0, "")
        assert f"{trace.trace_id:032x}" != TRACE
    later = begin(f"cc-{TRACE}-{SPAN}-00-more", "")
    assert isinstance(later, Untraced)
    assert headers(later)["traceparent"] == f"cc-{TRACE}-{SPAN}-00-more"


@pytest.mark.parametrize("garbage", ["rubbish", "00-a-b-01", "\x00", "00" * 4000, "🙂", "-", " "])
def test_garbage_begins_a_trace(told: Told, garbage: str) -> None:
    trace = tracing(told).begin(garbage, "a=b")
    assert isinstance(trace, Traced)
    assert trace.parent_id == 0
    assert parse(trace.traceparent) is not None
    assert trace.flags == SAMPLED | RANDOM
    assert list(headers(trace)) == ["traceparent"]


def test_a_share_of_the_traces_that_begin_here(told: Told) -> None:
    begin = tracing(told, 0.25).begin
    traced = [trace for _ in range(4000) if isinstance(trace := begin(), Traced)]
    assert 800 < len(traced) < 1200  # ± 7 standard deviations
    assert len({trace.trace_id for trace in traced}) == len(traced)
    assert not any(isinstance(tracing(told, 0.0).begin(), Traced) for _ in range(100))


def test_one_that_begins_here_and_is_not_recorded_says_so(told: Told) -> None:
    """Otherwise the server behind would decide for itself, and record half a trace."""
    trace = tracing(told, 0.0).begin()
    sent = headers(trace)
    found = parse(sent["traceparent"])
    assert found is not None
    assert not found.sampled
    assert headers(trace) == sent
    assert trace.traceparent == sent["traceparent"]


def test_callers_who_are_not_believed(told: Told) -> None:
    """Their trace goes on, the decision is ours; a changed flag comes with a span of its own."""
    no = tracing(told, 0.0, parent=False).begin(SAMPLED_CALLER, "a=b")
    assert isinstance(no, Untraced)
    sent = parse(headers(no)["traceparent"], headers(no)["tracestate"])
    assert sent is not None
    assert (f"{sent.trace_id:032x}", sent.sampled, sent.state) == (TRACE, False, "a=b")
    assert f"{sent.span_id:016x}" != SPAN
    same = tracing(told, 0.0, parent=False).begin(UNSAMPLED_CALLER)
    assert headers(same)["traceparent"] == UNSAMPLED_CALLER
    yes = tracing(told, 1.0, parent=False).begin(UNSAMPLED_CALLER)
    assert isinstance(yes, Traced)
    assert yes.traceparent.endswith("-01")
    assert f"{yes.parent_id:016x}" == SPAN


# --- the record -----------------------------------------------------------------------------------


def note(told: Told, trace: Traced, copy: Any, **request: Any) -> SpanRecord:
    known = {"model_name": "asked", "model_version": "9", "id": "", "request_id": "r", "inputs": []}
    timing = Timing(
        decode_ns=1, queue_ns=2, execute_ns=3, encode_ns=4, rows=5, executed=False, cached=True
    )
    asked = InferRequest(**{**known, "nbytes": 70, "transport": "http", "trace": trace, **request})
    tracing(told).note(trace, asked, copy, timing, 1000, 3500, "OK", 80)
    assert told.spans is not None
    [found] = told.spans.take()
    return found


def variant(name: str, *, forwards: bool = False) -> Any:
    config = SimpleNamespace(name=name)
    return SimpleNamespace(
        model="m", version="2", config=config, key=f"m:2/{name}", forwards=forwards
    )


def test_what_a_record_says(told: Told) -> None:
    trace = Traced(int(TRACE, 16), int(SPAN, 16), SAMPLED, "a=b")
    trace.client_span = 77
    found = note(told, trace, variant("x"))
    assert found == SpanRecord(
        traceparent=trace.traceparent, tracestate="a=b", parent_id=int(SPAN, 16), client_span=0,
        request_id="r", model="m", version="2", variant="x", transport="http", outcome="OK",
        start_ns=found.start_ns, end_ns=found.end_ns, queue_ns=2, decode_ns=1, execute_ns=3,
        encode_ns=4, rows=5, executed=False, cached=True, fallback="", bytes_in=70, bytes_out=80,
    )  # fmt: skip
    assert found.end_ns - found.start_ns == 2500
    assert found.end_ns < WALL_NS  # at a reading of the clock after it was over
    assert note(told, trace, variant("x", forwards=True)).client_span == 77


def test_a_fallback_is_one_record(told: Told) -> None:
    trace = Traced(1, 0, SAMPLED, "")
    trace.client_span = 77
    trace.fell_back(variant("there", forwards=True), variant("here"))
    found = note(told, trace, variant("there", forwards=True))
    assert (found.variant, found.fallback, found.client_span) == ("here", "m:2/there", 0)


def test_what_got_to_no_model_has_the_name_that_was_asked_for(told: Told) -> None:
    found = note(told, Traced(1, 0, SAMPLED, ""), None, model_name="x" * 5000)
    assert (found.model, found.version, found.variant) == ("x" * 256, "", "")


def test_what_a_thread_works_on() -> None:
    trace = Traced(5, 6, SAMPLED, "")
    working_on(trace)
    assert current() == context_of(trace)
    working_on(Untraced(UNSAMPLED_CALLER, ""))
    assert current() is None
    working_on(None)
    assert current() is None
