"""Pages → points: what is told of requests is what was counted, and nothing that was not."""

from __future__ import annotations

import os

import pytest

from exporters import instruments
from exporters.telemetry.model import Histogram, Number
from sidecar.config import parse
from sidecar.errors import CancelledError, DeadlineError, NotFoundError, OverloadedError
from sidecar.gateway.pages import (
    BUCKETS_NS,
    SERVER_COUNTERS,
    Page,
    Timing,
    create_page,
    sum_slot,
)
from sidecar.monitor.measures import CALLS, EXEMPLARS_MAX, Measures
from sidecar.traces import SpanRecord

SINCE_NS = 10**18
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def config(**settings):
    def variant(version, name, roles):
        runtime = {"kind": "remote", "address": "127.0.0.1:1"}
        return {"version": version, "name": name, "roles": roles, "runtime": runtime}

    variants = [
        variant("1", "onnx", ["previous"]),
        variant("2", "onnx", ["serving"]),
        variant("3", "onnx", ["serving"]),
    ]
    return parse({"models": [{"name": "m", "variants": variants, **settings}]})


@pytest.fixture
def pages():
    made = []
    for _ in range(2):
        descriptor = create_page(3)
        made.append(Page(descriptor, 3, owner=True))
        os.close(descriptor)
    yield made
    for page in made:
        page.close()


def told(measures, instrument):
    """Attributes → point."""
    return {
        tuple(sorted(point.attributes.items())): point
        for point in measures.points()
        if point.instrument is instrument
    }


def named(version="2", **more):
    names = {"model.name": "m", "model.version": version, "variant": "onnx", **more}
    return tuple(sorted(names.items()))


def call(transport, **more):
    system, method = CALLS[transport]
    return {"rpc.system.name": system, "rpc.method": method, **more}


def span(**changes):
    fields = {
        "traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "", "parent_id": 0, "client_span": 0,
        "request_id": "r", "model": "m", "version": "2", "variant": "onnx", "transport": "grpc",
        "outcome": "OK",
        "start_ns": SINCE_NS, "end_ns": SINCE_NS + 300_000, "decode_ns": 1, "queue_ns": 2,
        "execute_ns": 200_000, "encode_ns": 3, "rows": 1, "executed": True, "cached": False,
        "fallback": "", "bytes_in": 1, "bytes_out": 1,
    }  # fmt: skip
    return SpanRecord(**{**fields, **changes})


def test_what_never_happened_has_no_series(pages):
    measures = Measures(pages, config(), SINCE_NS)
    (share,) = measures.points()
    assert share.instrument is instruments.ROUTE_VERSION


def test_without_pages_only_the_route_is_told():
    assert [p.instrument for p in Measures((), config()).points()] == [instruments.ROUTE_VERSION]


@pytest.mark.parametrize(("default", "version"), [(None, "3"), ("2", "2")])
def test_the_route_goes_to_the_default_version(pages, default, version):
    settings = {} if default is None else {"default_version": default}
    shares = told(Measures(pages, config(**settings)), instruments.ROUTE_VERSION)
    assert {key: point.value for key, point in shares.items()} == {named(version): 1.0}


def test_calls_by_transport_and_error(pages):
    pages[0].record(1, Timing(), 300_000, 1, 2, 3, "grpc")
    pages[1].record(1, Timing(), 400_000, 1, 2, 3, "grpc")
    pages[1].record(1, Timing(), 5, 1, 2, 3, "http")
    pages[0].record_failure(1, "stream", DeadlineError(), 10**12)
    pages[0].record_failure(1, "grpc", CancelledError(), 7)
    measures = Measures(pages, config(), SINCE_NS)
    calls = told(measures, instruments.CALL_DURATION)
    assert set(calls) == {
        named(**call("grpc")), named(**call("http")),
        named(**call("stream"), **{"error.type": "DeadlineError"}),
        named(**call("grpc"), **{"error.type": "CancelledError"}),
    }  # fmt: skip
    both = calls[named(**call("grpc"))]
    assert isinstance(both, Histogram)
    assert (sum(both.counts), both.start_ns) == (2, SINCE_NS)
    assert both.sum == pytest.approx(0.0007)
    assert both.counts[3] == both.counts[2 + 1] == 2  # above 0.25 ms, up to 0.5 ms
    late = calls[named(**call("stream"), **{"error.type": "DeadlineError"})]
    assert late.counts[-1] == 1
    requests = {key: p.value for key, p in told(measures, instruments.REQUESTS).items()}
    assert requests == {
        named(outcome="success", reason=""): 3,
        named(outcome="fail", reason="DeadlineError"): 1,
        named(outcome="cancel", reason=""): 1,
    }


def test_what_got_to_no_model_is_told_without_one(pages):
    pages[0].record_failure(None, "http", NotFoundError(), 5)
    pages[1].record_failure(None, "grpc", NotFoundError(), 5)
    pages[1].record_failure(None, "grpc", OverloadedError(), 0)
    pages[1].add_server("refused_bytes")
    measures = Measures(pages, config(), SINCE_NS)
    requests = {key: p.value for key, p in told(measures, instruments.REQUESTS).items()}
    assert requests == {
        (("outcome", "fail"), ("reason", "NotFoundError")): 2,
        (("outcome", "refused"), ("reason", "bytes")): 1,
    }
    calls = told(measures, instruments.CALL_DURATION)
    assert sum(sum(point.counts) for point in calls.values()) == 3
    assert all(dict(key).keys() == {*call("grpc"), "error.type"} for key in calls)


def test_stages_rows_and_bytes_are_the_pages_own(pages):
    pages[0].record(1, Timing(10, 60_000, 300_000, 40, rows=3), 400_000, 1, 100, 7)
    pages[1].record(1, Timing(executed=False, cached=True), 9, 1, 100, 7)
    pages[1].add_duration(1, "cache_hit", 5)
    pages[0].add_duration(1, "cache_miss", 5)
    pages[0].add(1, "fallbacks")
    measures, total = Measures(pages, config(), SINCE_NS), sum_slot(pages, 1)
    stages = told(measures, instruments.INFERENCE_DURATION)
    for stage, counts in total.histograms.items():
        point = stages[named(role="serving", stage=stage)]
        assert point.counts == counts
        assert point.sum == total.durations[stage][1] / 1e9
    values = {
        instrument.name: {key: point.value for key, point in told(measures, instrument).items()}
        for instrument in (
            instruments.ROWS, instruments.EXECUTIONS, instruments.CACHE, instruments.IO,
            instruments.FALLBACKS,
        )
    }  # fmt: skip
    assert values == {
        "model_sidecar.inference.rows": {named(): 3},
        "model_sidecar.inference.executions": {named(): 1},
        "model_sidecar.cache.lookups": {named(outcome="hit"): 1, named(outcome="miss"): 1},
        "model_sidecar.request.io": {named(direction="in"): 200, named(direction="out"): 14},
        "model_sidecar.fallbacks": {named(): 1},
    }
    (rows,) = told(measures, instruments.ROWS).values()
    assert isinstance(rows, Number)
    assert (rows.value, rows.start_ns) == (3, SINCE_NS)


def test_what_the_gateway_dropped(pages):
    pages[0].add_server("spans_dropped", 2)
    pages[1].add_server("spans_dropped", 3)
    pages[1].add_server("tap_dropped_full", 7)
    dropped = told(Measures(pages, config(), SINCE_NS), instruments.GATEWAY_DROPPED)
    assert {dict(key)["reason"]: point.value for key, point in dropped.items()} == {
        "span": 5, "exchange_full": 7,
    }  # fmt: skip


def test_what_kept_workers_from_the_route(pages):
    measures = Measures(pages, config(), SINCE_NS)
    assert told(measures, instruments.ROUTE_PROBLEMS) == {}
    pages[0].add_server("route_damaged", 2)
    for page in pages:
        page.add_server("route_missing")
    found = told(measures, instruments.ROUTE_PROBLEMS)
    assert {dict(key)["reason"]: point.value for key, point in found.items()} == {
        "damaged": 2, "missing": len(pages),
    }  # fmt: skip


def test_every_counter_of_the_server_is_told(pages):
    """Those of the tap by coverage, an unknown model as a call that failed; the others here."""
    for name in SERVER_COUNTERS:
        pages[0].add_server(name)
    points = list(Measures(pages, config(), SINCE_NS).points())
    counted = sum(point.value for point in points if isinstance(point, Number) and point.start_ns)
    elsewhere = {"unknown_model", "tap_sampled", "tap_sent", "tap_shared_memory", "tap_sequence",
                 "tap_too_large", "tap_unclear"}  # fmt: skip
    assert counted == len(SERVER_COUNTERS) - len(elsewhere)


def test_the_latest_trace_of_a_bucket_is_its_example(pages):
    pages[0].record(1, Timing(execute_ns=200_000), 300_000, 1, 2, 3)
    measures = Measures(pages, config(), SINCE_NS)
    measures.exemplar(span(traceparent=f"00-{'1' * 32}-{SPAN}-01"))
    measures.exemplar(span(end_ns=SINCE_NS + 310_000))
    measures.exemplar(span(traceparent=f"00-{'2' * 32}-{SPAN}-00"))  # not sampled: nobody has it
    measures.exemplar(span(traceparent="nonsense"))
    (point,) = told(measures, instruments.CALL_DURATION).values()
    (example,) = point.exemplars
    assert example.context.trace_id == int(TRACE, 16)
    assert (example.value, example.time_ns) == (0.00031, SINCE_NS + 310_000)
    stages = told(measures, instruments.INFERENCE_DURATION)
    (execute,) = stages[named(role="serving", stage="execute")].exemplars
    assert execute.value == 0.0002


def test_a_failure_is_an_example_of_its_own_series_alone(pages):
    pages[0].record(1, Timing(), 300_000, 1, 2, 3)
    pages[0].record_failure(1, "grpc", DeadlineError(), 300_000)
    measures = Measures(pages, config(), SINCE_NS)
    measures.exemplar(span(outcome="DeadlineError"))
    calls = told(measures, instruments.CALL_DURATION)
    assert calls[named(**call("grpc"))].exemplars == []
    assert len(calls[named(**call("grpc"), **{"error.type": "DeadlineError"})].exemplars) == 1


def test_examples_are_bounded(pages):
    measures = Measures(pages, config(), SINCE_NS)
    outcomes = ["OK", *(error.__name__ for error in (DeadlineError, CancelledError))]
    for ns in BUCKETS_NS:
        for outcome in outcomes:
            measures.exemplar(span(outcome=outcome, end_ns=SINCE_NS + ns, execute_ns=ns))
    for number in range(100):
        measures.exemplar(span(model=f"unknown {number}", outcome=f"{number}"))
    assert len(measures._exemplars) <= min(EXEMPLARS_MAX, 5 * len(BUCKETS_NS) + 10)
