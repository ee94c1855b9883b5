"""The monitor's telemetry: fed, told, and never anybody else's trouble."""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from exporters import instruments
from exporters.telemetry.context import SAMPLED, TraceContext
from exporters.telemetry.model import Number
from sidecar import __version__, logs
from sidecar.clock import SystemClock
from sidecar.config_telemetry import TelemetryConfig
from sidecar.monitor.telling import RETRY_S, Telling
from sidecar.telemetry_settings import resolve
from tests.monitor import making
from tests.monitor.recording import PARENT, SPAN_ID, TRACE_ID, record
from tests.support.otlp_receiver import GrpcReceiver, HttpReceiver, refusing, silent, wait_for

PATIENCE_S = 60.0


def points():
    yield Number(instruments.MIRROR_QUEUE, 7)


class Exemplars(list):
    def __call__(self, given):
        self.append(given)


@pytest.fixture
def tell():
    """Makes them, started; ends them all."""
    made = []

    def make(clock=None, **config) -> Telling:
        told = resolve(TelemetryConfig.model_validate(config), {})
        made.append(telling := Telling(told, Exemplars(), clock or SystemClock()))
        telling.start([points])
        return telling

    yield make
    for telling in made:
        telling.close(1.0)


def entry(**changes):
    fields = {
        "body": "loaded digits", "time_ns": 1_760_000_000_000_000_000, "severity": 13,
        "severity_text": "WARNING", "attributes": {"logger.name": "sidecar.gateway", "rows": 3},
        "traceparent": f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01",
    }  # fmt: skip
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("exporter", "receiver"), [("otlp-grpc", GrpcReceiver), ("otlp-http", HttpReceiver)]
)
def test_what_the_gateway_noted_arrives(tell, exporter, receiver):
    with receiver() as backend:
        telling = tell(exporter=exporter, endpoint=backend.endpoint)
        telling.on_spans([record(), record(outcome="ExecutionError")])
        telling.on_logs([entry(), entry(traceparent="", body="nobody's")])
        telling.close(PATIENCE_S)
        servers = [span for span in backend.spans if span.kind == 2]
        assert {span.span_id.hex() for span in servers} == {f"{SPAN_ID:016x}"}
        assert {span.parent_span_id.hex() for span in servers} == {f"{PARENT:016x}"}
        assert sorted(span.status.code for span in servers) == [0, 2]
        ours = [one for one in backend.records if one.severity_number == 13]
        assert [one.body.string_value for one in ours] == ["loaded digits", "nobody's"]
        assert ours[0].trace_id.hex() == f"{TRACE_ID:032x}"
        assert ours[0].time_unix_nano == 1_760_000_000_000_000_000
        assert ours[1].trace_id == b""
        assert backend.metrics()["model_sidecar.mirror.queue.bytes"].gauge.data_points[0].as_int
        resources = [r for one in backend.received for r in resources_of(one.message)]
        names = {a.key: a.value.string_value for a in resources[0].attributes}
        assert names["service.name"] == "model-sidecar"
        assert names["service.version"] == __version__
        assert len(names["service.instance.id"]) == 36
    assert len(telling._exemplar) == 2


def resources_of(message):
    for name in ("resource_spans", "resource_metrics", "resource_logs"):
        for one in getattr(message, name, ()):
            yield one.resource


def test_each_life_has_a_name_of_its_own(tell):
    one, other = tell(exporter="none"), tell(exporter="none")
    ids = [t._told.settings.resource["service.instance.id"] for t in (one, other)]
    assert len(set(ids)) == 2
    named = tell(resource={"service.instance.id": "mine"})
    assert named._told.settings.resource["service.instance.id"] == "mine"


def test_the_monitors_own_records_are_told_with_their_trace(tell):
    context = TraceContext(TRACE_ID, SPAN_ID, SAMPLED)
    with HttpReceiver() as backend:
        telling = tell(logs={"exporter": "otlp-http", "endpoint": f"{backend.endpoint}/v1/logs"})
        logger = logging.getLogger("sidecar.somewhere")
        logger.error("named", extra={"trace": context})
        logs.follow(lambda: context)
        logger.error("current")
        logs.follow(lambda: None)
        telling.close(PATIENCE_S)
        logger.error("after the end")
        found = {one.body.string_value: one.trace_id.hex() for one in backend.records}
    assert found == {"named": f"{TRACE_ID:032x}", "current": f"{TRACE_ID:032x}"}
    assert telling.status().state == "stopped"


def test_one_strange_record_does_not_cost_the_others(tell, caplog):
    with HttpReceiver() as backend:
        telling = tell(exporter="otlp-http", endpoint=backend.endpoint)
        telling.on_spans([record(start_ns="then"), SimpleNamespace(), record()])
        telling.on_logs([{}, entry(severity=99), entry(attributes=None), entry(body="fine")])
        telling.close(PATIENCE_S)
        assert any(span.kind == 2 for span in backend.spans)
        bodies = [one.body.string_value for one in backend.records]
    assert "fine" in bodies
    said = [one.message for one in caplog.records if "cannot be told" in one.message]
    assert len(said) == 2  # once for each kind


def test_nothing_is_made_where_nothing_is_to_be_told(tell):
    telling = tell()
    telling.on_spans([record()])
    telling.on_logs([entry()])
    assert (telling.status().state, telling.lines()) == ("off", [])


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_extra_that_is_not_installed_is_said(tell, monkeypatch, caplog):
    for name in [one for one in sys.modules if one.startswith("exporters.telemetry.encode")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    telling = tell(exporter="otlp-grpc")
    telling.on_spans([record()])
    status = telling.status()
    assert status.state == "failed"
    assert "install model-sidecar[otel]" in status.message
    assert sum(one.dropped["not_started"] for one in status.signals) == 3  # with its children
    assert telling.lines() == [f"telemetry: nothing is told: {status.message}"]
    assert "all else goes on" in caplog.text


def test_a_port_that_is_taken_is_tried_again(tell):
    clock = making.Clock()
    clock.ns = 10**18
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        telling = tell(clock, exporter="prometheus", prometheus=address)
        assert telling.status().state == "failed"
        assert "in use" in telling.status().message
        telling.tick()
        assert telling.status().state == "failed"
    clock.advance(RETRY_S + 1)
    telling.tick()
    status = telling.status()
    assert (status.state, status.prometheus) == ("ok", f"http://{address}/metrics")
    assert telling.lines() == [f"metrics: http://{address}/metrics"]


def test_a_certificate_that_cannot_be_read_is_said(tell, tmp_path):
    pem = tmp_path / "ca.pem"
    pem.write_text("nothing of the kind")
    telling = tell(exporter="otlp-http", endpoint="https://127.0.0.1:1", certificate=str(pem))
    assert telling.status().state == "failed"


@pytest.mark.parametrize("nobody", [refusing, silent])
def test_a_backend_that_is_dead_is_a_state_and_holds_nobody(tell, nobody):
    with nobody() as port:
        telling = tell(
            exporter="otlp-http", endpoint=f"http://127.0.0.1:{port}", timeout_s=0.2,
            metrics={"interval_s": 0.1},
        )  # fmt: skip
        telling.on_spans([record()] * 10)
        wait_for(lambda: telling.status().state == "failing")
        ended = threading.Thread(target=telling.close, args=(0.5,))
        ended.start()
        ended.join(PATIENCE_S)
        assert not ended.is_alive()
    signals = {one.signal: one for one in telling.status().signals}
    assert not signals["metrics"].up
    assert signals["metrics"].error
    traces = signals["traces"]
    assert (traces.exported, traces.waiting) == (0, 0)
    assert sum(traces.dropped.values()) == 30


def test_the_console_is_one_object_a_line(tell, monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream))
    telling = tell(traces={"exporter": "console"})
    telling.on_spans([record()])
    telling.close(PATIENCE_S)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["name"] for line in lines] == [
        "inference.GRPCInferenceService/ModelInfer", "queue", "execute",
    ]  # fmt: skip
