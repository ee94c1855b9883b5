"""Spans of what was noted: ids, times, names, attributes, and whose fault it was."""

from __future__ import annotations

import itertools

import pytest

from exporters.telemetry.context import RANDOM, SAMPLED
from exporters.telemetry.model import SpanKind
from sidecar.monitor import spans
from sidecar.monitor.measures import CALLS
from tests.monitor.recording import END_NS, PARENT, SPAN_ID, START_NS, TRACE_ID, record

MS = 1_000_000


def counted():
    numbers = itertools.count(1)
    return lambda count: next(numbers).to_bytes(count, "big")


def named(found):
    return {span.name: span for span in found}


def test_a_request_has_its_true_ids_and_times():
    root, *children = spans.served(record())
    assert (root.context.trace_id, root.context.span_id) == (TRACE_ID, SPAN_ID)
    assert root.context.flags == SAMPLED | RANDOM
    assert root.context.state == "vendor=1"
    assert (root.parent_id, root.parent_remote) == (PARENT, True)
    assert (root.start_ns, root.end_ns) == (START_NS, END_NS)
    assert (root.kind, root.name) == (SpanKind.SERVER, CALLS["grpc"][1])
    assert root.error is None
    assert {child.context.trace_id for child in children} == {TRACE_ID}
    assert {child.parent_id for child in children} == {SPAN_ID}
    assert len({child.context.span_id for child in [root, *children]}) == len(children) + 1
    assert spans.served(record())[1].context == children[0].context  # told twice: the same


def test_what_is_said_of_a_request():
    root = spans.served(record(fallback="2/pt"))[0]
    assert root.attributes == {
        "rpc.system.name": "grpc", "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK", "model.name": "digits", "model.version": "2",
        "variant": "onnx", "fallback": "2/pt", "rows": 3, "cached": False, "request.size": 100,
        "response.size": 50,
    }  # fmt: skip
    http = spans.served(record(transport="http"))[0]
    assert http.name == "POST /v2/models/{name}/infer"
    assert http.attributes["http.request.method"] == "POST"
    assert http.attributes["http.route"] == "/v2/models/{name}/infer"
    assert http.attributes["http.response.status_code"] == 200
    assert "rpc.response.status_code" not in http.attributes
    stream = spans.served(record(transport="stream"))[0]
    assert stream.name == "inference.GRPCInferenceService/ModelStreamInfer"


def test_nobodys_request_id_is_told():
    everything = [
        *spans.served(record(request_id="secret-id")),
        *spans.served(record(request_id="secret-id", outcome="ExecutionError", client_span=7)),
    ]
    assert "secret-id" not in repr(everything)


def test_the_stages_follow_one_another_within_the_request():
    given = record(queue_ns=2 * MS, decode_ns=3 * MS, execute_ns=10 * MS, encode_ns=4 * MS)
    root, *children = spans.served(given)
    assert [child.name for child in children] == ["queue", "decode", "execute", "encode"]
    assert {child.kind for child in children} == {SpanKind.INTERNAL}
    took = [child.end_ns - child.start_ns for child in children]
    assert took == [2 * MS, 3 * MS, 10 * MS, 4 * MS]
    assert children[0].start_ns == root.start_ns
    assert children[1].start_ns == children[0].end_ns
    assert children[2].end_ns == children[3].start_ns
    assert children[3].end_ns == root.end_ns


@pytest.mark.parametrize("stages", list(itertools.product((0, 1, 10**12), repeat=4)))
def test_whatever_was_measured_stays_within_the_request(stages):
    queue, decode, execute, encode = stages
    given = record(queue_ns=queue, decode_ns=decode, execute_ns=execute, encode_ns=encode)
    for span in spans.served(given):
        assert START_NS <= span.start_ns <= span.end_ns <= END_NS


def test_short_stages_are_no_spans():
    found = named(spans.served(record(decode_ns=MS - 1, encode_ns=MS)))
    assert "decode" not in found
    assert "encode" in found


def test_what_came_from_the_cache_was_not_executed():
    found = spans.served(record(cached=True, execute_ns=0, executed=False, queue_ns=0))
    assert [span.name for span in found] == [CALLS["grpc"][1]]
    assert found[0].attributes["cached"] is True


def test_a_batch_is_told_from_an_execution_of_its_own():
    joined = [named(spans.served(record(executed=one)))["execute"] for one in (True, False)]
    assert [span.attributes["joined"] for span in joined] == [False, True]


@pytest.mark.parametrize(
    ("transport", "method"),
    [("grpc", "ModelInfer"), ("stream", "ModelStreamInfer"), ("http", "ModelInfer")],
)
def test_another_servers_call_has_the_id_that_it_was_given(transport, method):
    _, *children = spans.served(record(client_span=0x77, transport=transport))
    (call,) = [child for child in children if child.kind is SpanKind.CLIENT]
    assert (call.context.span_id, call.parent_id) == (0x77, SPAN_ID)
    assert call.name == f"inference.GRPCInferenceService/{method}"
    assert call.attributes["rpc.system.name"] == "grpc"
    assert "execute" not in named(children)
    # Also where it never answered: what it did hangs under this span.
    assert 0x77 in {
        one.context.span_id
        for one in spans.served(record(client_span=0x77, execute_ns=0, outcome="UpstreamError"))
    }


@pytest.mark.parametrize(
    ("outcome", "transport", "status", "faulty"),
    [
        ("InvalidRequestError", "grpc", "INVALID_ARGUMENT", False),
        ("InvalidRequestError", "http", 400, False),
        ("OverloadedError", "grpc", "RESOURCE_EXHAUSTED", False),
        ("CancelledError", "grpc", "CANCELLED", False),
        ("DeadlineError", "stream", "DEADLINE_EXCEEDED", True),
        ("UnavailableError", "http", 503, True),
        ("ExecutionError", "grpc", "INTERNAL", True),
        ("UpstreamError", "http", 500, True),
        ("ZeroDivisionError", "grpc", "INTERNAL", True),
    ],
)
def test_only_the_servers_own_faults_are_errors(outcome, transport, status, faulty):
    root = spans.served(record(outcome=outcome, transport=transport))[0]
    key = "http.response.status_code" if transport == "http" else "rpc.response.status_code"
    assert root.attributes[key] == status
    assert root.attributes["error.type"] == outcome
    assert root.error == (outcome if faulty else None)


def test_what_got_to_no_model_says_no_more_than_is_known():
    root = spans.served(
        record(version="", variant="", outcome="NotFoundError", queue_ns=0, execute_ns=0)
    )[0]
    assert root.attributes["model.name"] == "digits"
    assert "model.version" not in root.attributes
    assert "variant" not in root.attributes


@pytest.mark.parametrize(
    "changes",
    [
        {"traceparent": ""},
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-00"},
        {"transport": "pigeon"},
    ],
)
def test_what_is_not_traced_is_no_span(changes):
    assert spans.served(record(**changes)) == []


def test_a_mirror_is_a_trace_of_its_own_that_links_to_the_served_one():
    of = spans.linked(record().traceparent)
    assert of is not None
    span = spans.mirror_execute(
        of, variant="digits:2/int8", role="mirror", failure="", start_ns=1, end_ns=5, rows=3,
        entropy=counted(),
    )  # fmt: skip
    assert (span.context.trace_id, span.context.span_id, span.parent_id) == (1, 2, 0)
    assert span.context.sampled
    (link,) = span.links
    assert (link.context.trace_id, link.context.span_id) == (TRACE_ID, SPAN_ID)
    assert span.attributes == {
        "model.name": "digits", "model.version": "2", "variant": "int8", "role": "mirror",
        "outcome": "success", "rows": 3, "served.trace_id": f"{TRACE_ID:032x}",
    }  # fmt: skip
    compare = spans.mirror_compare(
        span, candidate="digits:2/int8", baseline="digits:2/onnx", verdict="FAIL", rows=3,
        bad_rows=1, start_ns=6, end_ns=7, entropy=counted(),
    )  # fmt: skip
    assert (compare.context.trace_id, compare.parent_id) == (1, 2)
    assert compare.links == ()
    assert compare.attributes["verdict"] == "FAIL"


def test_a_mirror_that_failed_says_how_and_nothing_of_the_inputs():
    of = spans.linked(record().traceparent)
    span = spans.mirror_execute(
        of, variant="digits:2/int8", role="mirror", failure="timeout", start_ns=1, end_ns=5, rows=1
    )
    assert (span.error, span.attributes["error.type"]) == ("timeout", "timeout")


def test_what_was_not_sampled_has_no_mirror_to_tell_of():
    assert spans.linked("") is None
    assert spans.linked(f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-00") is None


def test_a_window_of_drift():
    span = spans.drift_window(
        "digits", rows=500, state="alarm", reference="spring", start_ns=1, end_ns=9,
        entropy=counted(),
    )  # fmt: skip
    assert (span.name, span.start_ns, span.end_ns, span.parent_id) == ("drift.window", 1, 9, 0)
    assert span.attributes == {
        "model.name": "digits", "reference": "spring", "rows": 500, "state": "alarm",
    }  # fmt: skip
