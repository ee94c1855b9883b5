"""What arrives at an OTLP backend, over gRPC and over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanPb
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags
from opentelemetry.proto.trace.v1.trace_pb2 import Status as StatusPb

from exporters.instruments import DURATION_BUCKETS_S, INFERENCE_DURATION, REQUESTS
from exporters.telemetry import Exporter, Override, Signal, Telemetry
from exporters.telemetry.model import Event, Link, SpanKind
from tests.clients import certificates
from tests.exporters.telemetry.support import (
    LONG_S,
    RECEIVERS,
    SPAN_ID,
    START_NS,
    TRACE_ID,
    VARIANT,
    attributes,
    context,
    log,
    points,
    settings,
    span,
    telling,
)
from tests.support.otlp_receiver import Receiver


@pytest.fixture(params=list(RECEIVERS), ids=str)
def exporter(request) -> Exporter:
    return request.param


@pytest.fixture
def backend(exporter: Exporter) -> Iterator[Receiver]:
    with RECEIVERS[exporter]() as receiver:
        yield receiver


@pytest.fixture
def telemetry(exporter: Exporter, backend: Receiver) -> Iterator[Telemetry]:
    with telling(settings(exporter, backend.endpoint)) as telemetry:
        yield telemetry


# --- spans ----------------------------------------------------------------------------------------


def test_a_span_arrives_with_its_own_ids_and_times(telemetry, backend):
    served = span(8, context=context(state="vendor=1"), parent_id=0x11, parent_remote=True)
    execute = span(
        0x33, name="execute", kind=SpanKind.INTERNAL, parent_id=SPAN_ID, error="out of memory"
    )
    assert telemetry.span(served)
    assert telemetry.span(execute)
    assert telemetry.flush(LONG_S)
    first, second = backend.spans
    assert first.name == "inference.GRPCInferenceService/ModelInfer"
    assert first.trace_id == second.trace_id == TRACE_ID.to_bytes(16)
    assert first.span_id == second.parent_span_id == SPAN_ID.to_bytes(8)
    assert first.parent_span_id == (0x11).to_bytes(8)
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (START_NS, START_NS + 1500000)
    assert (first.kind, second.kind) == (SpanPb.SPAN_KIND_SERVER, SpanPb.SPAN_KIND_INTERNAL)
    assert first.trace_state == "vendor=1"
    remote = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    assert first.flags & remote
    assert not second.flags & remote
    assert attributes(first) == {"rpc.system.name": "grpc", "model.name": "digits", "rows": 8}
    assert first.status.code == StatusPb.STATUS_CODE_UNSET
    assert (second.status.code, second.status.message) == (
        StatusPb.STATUS_CODE_ERROR,
        "out of memory",
    )


def test_a_mirror_is_a_root_with_a_link(telemetry, backend):
    served = context()
    mirror = span(
        name="mirror",
        kind=SpanKind.INTERNAL,
        context=context(0x44),
        links=[Link(served, {"model.version": "1"})],
        events=[Event("compared", START_NS + 5, {"verdict": "PASS"})],
    )
    assert telemetry.span(mirror)
    assert telemetry.flush(LONG_S)
    [found] = backend.spans
    assert found.parent_span_id == b""
    [link] = found.links
    assert link.trace_id == TRACE_ID.to_bytes(16)
    assert link.span_id == SPAN_ID.to_bytes(8)
    assert attributes(link) == {"model.version": "1"}
    [event] = found.events
    assert (event.name, event.time_unix_nano) == ("compared", START_NS + 5)
    assert attributes(event) == {"verdict": "PASS"}


def test_what_is_not_sampled_is_not_sent(telemetry, backend):
    assert not telemetry.span(span(context=context(sampled=False)))
    assert telemetry.span(span(2))
    assert telemetry.flush(LONG_S)
    assert [one.span_id for one in backend.spans] == [(2).to_bytes(8)]
    assert telemetry.counts()[Signal.TRACES, "exported", ""] == 1


def test_resource_and_scope(telemetry, backend):
    telemetry.span(span())
    telemetry.log(log())
    assert telemetry.flush(LONG_S)
    said = {"service.name": "checkout", "service.instance.id": "a-1"}
    for name, signal in (("spans", "traces"), ("metrics", "metrics"), ("logs", "logs")):
        message = backend.of(signal)[0].message
        [resource] = getattr(message, f"resource_{name}")
        assert attributes(resource.resource) == said
        [scope] = getattr(resource, f"scope_{name}")
        assert (scope.scope.name, scope.scope.version) == ("model_sidecar", "1.2.3")


def test_many_spans_come_in_small_slices_and_all_of_them(telemetry, backend):
    for number in range(1, 1001):
        telemetry.span(span(number))
    assert telemetry.flush(LONG_S)
    assert sorted(int.from_bytes(one.span_id) for one in backend.spans) == list(range(1, 1001))
    assert telemetry.counts()[Signal.TRACES, "exported", ""] == 1000
    assert len(backend.of("traces")) >= 8
    assert len({one.connection for one in backend.of("traces")}) == 1, "the connection is kept"


def test_texts_are_cut_and_too_much_is_left_out(telemetry, backend):
    huge = span(
        attributes={
            "big": 2**80,
            "a": "x" * 100_000,
            "b": ["y" * 5000] * 1000,
            **{f"k{i}": i for i in range(99)},
        },
        error="z" * 100_000,
        links=[Link(context())] * 100,
        events=[Event("e" * 5000, START_NS)] * 100,
    )
    telemetry.span(huge)
    telemetry.log(log("w" * 100_000))
    assert telemetry.flush(LONG_S)
    [found] = backend.spans
    values = attributes(found)
    assert len(values) == 64
    assert values["big"] == str(2**80)
    assert values["a"] == "x" * 1024
    assert [len(one.string_value) for one in values["b"].values] == [1024] * 64
    assert len(found.status.message) == 1024
    assert (len(found.links), len(found.events), len(found.events[0].name)) == (32, 32, 1024)
    assert len(backend.records[0].body.string_value) == 8192


def test_one_that_cannot_be_encoded_takes_no_other_with_it(telemetry, backend, caplog):
    with caplog.at_level(logging.CRITICAL, logger="exporters.telemetry"):
        for number in range(1, 10):
            telemetry.span(span(number, start_ns=-1) if number == 4 else span(number))
        assert telemetry.flush(LONG_S)
    assert sorted(int.from_bytes(one.span_id) for one in backend.spans) == [1, 2, 3, 5, 6, 7, 8, 9]
    counts = telemetry.counts()
    assert counts[Signal.TRACES, "exported", ""] == 8
    assert counts[Signal.TRACES, "dropped", "invalid"] == 1


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_arrive_as_they_were_counted(telemetry, backend):
    telemetry.observe(points)
    assert telemetry.flush(LONG_S)
    found = backend.metrics()
    requests = found[REQUESTS.name]
    assert (requests.unit, requests.description) == (REQUESTS.unit, REQUESTS.description)
    assert requests.sum.is_monotonic
    assert requests.sum.aggregation_temporality == 2  # cumulative
    values = {attributes(one)["outcome"]: one for one in requests.sum.data_points}
    assert (values["success"].as_int, values["fail"].as_int) == (41, 1)
    assert values["success"].start_time_unix_nano == START_NS
    assert values["success"].time_unix_nano > START_NS
    [share] = found["model_sidecar.route.version"].gauge.data_points
    assert share.as_double == 0.25
    assert share.start_time_unix_nano == 0
    assert attributes(share) == VARIANT


def test_a_histogram_keeps_its_buckets_and_its_exemplar(telemetry, backend):
    telemetry.observe(points)
    assert telemetry.flush(LONG_S)
    histogram = backend.metrics()[INFERENCE_DURATION.name].histogram
    assert histogram.aggregation_temporality == 2
    [point] = histogram.data_points
    assert tuple(point.explicit_bounds) == DURATION_BUCKETS_S
    assert list(point.bucket_counts) == [0, 0, 0, 30, 0, 0, 11] + [0] * 12
    assert (point.count, point.sum) == (41, 0.075)
    assert not point.HasField("min")
    assert not point.HasField("max")
    assert point.start_time_unix_nano == START_NS
    assert attributes(point) == {**VARIANT, "role": "serving", "stage": "execute"}
    [exemplar] = point.exemplars
    assert exemplar.trace_id == TRACE_ID.to_bytes(16)
    assert exemplar.span_id == (0x22).to_bytes(8)
    assert (exemplar.as_double, exemplar.time_unix_nano) == (0.004, START_NS + 7)


def test_counters_that_do_not_say_since_when_count_since_the_beginning(exporter, backend):
    with telling(settings(exporter, backend.endpoint), now_ns=lambda: START_NS) as telemetry:
        assert telemetry.flush(LONG_S)
        telemetry.span(span())
        assert telemetry.flush(LONG_S)
    items = backend.metrics()["model_sidecar.telemetry.items"].sum.data_points
    assert {one.start_time_unix_nano for one in items} == {START_NS}
    traces = [one for one in items if attributes(one)["signal"] == "traces"]
    assert [one.as_int for one in traces if attributes(one)["outcome"] == "exported"] == [1]


def test_metrics_are_sent_on_a_schedule(exporter, backend):
    with telling(settings(exporter, backend.endpoint, interval_s=0.02)):
        backend.wait(lambda it: len(it.of("metrics")) >= 3)


def test_a_reader_that_fails_loses_its_own_points_only(telemetry, backend, caplog):
    def broken():
        yield points()[0]
        raise OSError("the page is gone")

    with caplog.at_level(logging.CRITICAL, logger="exporters.telemetry"):
        telemetry.observe(broken)
        telemetry.observe(points)
        assert telemetry.flush(LONG_S)
    assert INFERENCE_DURATION.name in backend.metrics()


def test_too_many_points_are_dropped_and_counted(exporter, backend, caplog):
    with (
        caplog.at_level(logging.CRITICAL, logger="exporters.telemetry"),
        telling(settings(exporter, backend.endpoint, points_max=50)) as telemetry,
    ):
        telemetry.observe(lambda: points() * 100)
        assert telemetry.flush(LONG_S)
        sent = [
            len(metric.sum.data_points) + len(metric.gauge.data_points)
            + len(metric.histogram.data_points)
            for metric in backend.metrics().values()
        ]  # fmt: skip
        assert sum(sent) == 50
        assert telemetry.counts()[Signal.METRICS, "dropped", "too_many"] > 300


# --- log records ----------------------------------------------------------------------------------


def test_a_log_record_belongs_to_its_trace(telemetry, backend):
    record = log(
        "wörld", severity=17, severity_text="ERROR", attributes={"model.name": "digits"},
        context=context(), event="model.load",
    )  # fmt: skip
    assert telemetry.log(record)
    assert telemetry.log(log("alone"))
    assert telemetry.flush(LONG_S)
    first, second = backend.records
    assert first.body.string_value == "wörld"
    assert (first.severity_number, first.severity_text) == (17, "ERROR")
    assert (first.trace_id, first.span_id) == (TRACE_ID.to_bytes(16), SPAN_ID.to_bytes(8))
    assert first.flags & 1
    assert first.time_unix_nano == START_NS
    assert first.observed_time_unix_nano > START_NS
    assert first.event_name == "model.load"
    assert attributes(first) == {"model.name": "digits"}
    assert second.trace_id == b""


# --- the connection -------------------------------------------------------------------------------


def test_headers_and_compression(exporter, backend):
    headers = {"Authorization": "Bearer 123", "x-tenant": "t"}
    told = settings(exporter, backend.endpoint, headers=headers, compression="gzip")
    with telling(told) as telemetry:
        telemetry.span(span())
        assert telemetry.flush(LONG_S)
    got = backend.of("traces")[0].headers
    assert (got["authorization"], got["x-tenant"]) == ("Bearer 123", "t")
    if exporter is Exporter.OTLP_HTTP:
        assert got["content-encoding"] == "gzip"
    assert len(backend.spans) == 1


def test_tls_with_certificates_on_both_sides(exporter, tmp_path):
    files = certificates.write(tmp_path)
    with RECEIVERS[exporter](files) as backend:
        told = settings(
            exporter, backend.endpoint, certificate=str(files.ca),
            client_certificate=str(files.client), client_key=str(files.client_key),
        )  # fmt: skip
        with telling(told) as telemetry:
            telemetry.span(span())
            assert telemetry.flush(LONG_S)
            assert len(backend.spans) == 1


def test_a_certificate_that_is_not_there_is_found_at_the_start(exporter):
    told = settings(exporter, "https://127.0.0.1:1", certificate="nowhere.pem")
    with pytest.raises(OSError, match="nowhere"):
        Telemetry(told)


def test_each_signal_goes_where_it_is_sent():
    with RECEIVERS[Exporter.OTLP_GRPC]() as one, RECEIVERS[Exporter.OTLP_HTTP]() as other:
        own = Override(Exporter.OTLP_HTTP, f"{other.endpoint}/v1/logs")
        told = settings(Exporter.OTLP_GRPC, one.endpoint, overrides={Signal.LOGS: own})
        with telling(told) as telemetry:
            telemetry.span(span())
            telemetry.log(log())
            assert telemetry.flush(LONG_S)
        assert {got.signal for got in one.received} == {"traces", "metrics"}
        assert {got.signal for got in other.received} == {"logs"}


def test_the_last_words_are_sent_at_shutdown(exporter, backend):
    with telling(settings(exporter, backend.endpoint)) as telemetry:
        telemetry.observe(points)
        telemetry.span(span())
        counts = telemetry.shutdown(LONG_S)
    assert len(backend.spans) == 1
    assert REQUESTS.name in backend.metrics()
    assert counts[Signal.TRACES, "exported", ""] == 1
    assert not any(outcome == "dropped" for _, outcome, _ in counts)
    telemetry.span(span())
    assert telemetry.shutdown()[Signal.TRACES, "dropped", "shutdown"] == 1
