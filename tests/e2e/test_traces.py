"""A caller's trace, seen by a backend: over streams and HTTP, in front of another server, in logs.
(``test_spans_told.py`` has the stages, the mirrors and the histograms.)"""

from __future__ import annotations

import os

import grpc
import httpx
import pytest
import yaml

from tests.e2e.support import LOCAL, Client, onnx_times, request, running, until
from tests.e2e.test_telemetry import await_monitor
from tests.support.otlp_receiver import GrpcReceiver

CALLER_TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER, CLIENT = 2, 3  # of the proto's SpanKind


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def config(folder, backend, variants, **traces):
    tree = {
        "models": [{"name": "double", "variants": variants}],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": {"address": LOCAL},
            "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {"grpc": LOCAL, "mirror": {"sample_rate": 1}, "state_dir": "state"},
        "telemetry": {
            "exporter": "otlp-grpc", "endpoint": backend.endpoint, "metrics": {"interval_s": 0.2},
            "traces": traces,
        },
    }  # fmt: skip
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def local(folder, *more):
    runtime = {"kind": "onnxruntime", "path": onnx_times(folder, 2, "double.onnx").name}
    roles = (("onnx", "serving"), ("ref", "reference"), *more)
    return [
        {"version": "1", "name": name, "roles": [role], "runtime": runtime} for name, role in roles
    ]


def traceparent(trace=CALLER_TRACE, flags="01"):
    return f"00-{trace}-{CALLER_SPAN}-{flags}"


def attributes(span):
    found = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        found[one.key] = getattr(one.value, kind)
    return found


def of_trace(backend, trace=CALLER_TRACE):
    return [span for span in backend.spans if span.trace_id.hex() == trace]


def served(backend, name, trace=CALLER_TRACE):
    """The one server span of that name in the caller's trace, waited for."""

    def found():
        return [s for s in of_trace(backend, trace) if s.kind == SERVER and s.name == name]

    (span,) = until(found, f"the span {name}")
    return span


def connected(server):
    """Its gateway hands over to its monitor: before, what would be told is dropped, and counted."""
    await_monitor(server)
    until(lambda: " to the monitor at " in server.text, "the gateway finds its monitor")


def test_streams_and_http_carry_it_too_and_an_unsampled_trace_is_left_alone(tmp_path):
    with (
        GrpcReceiver() as backend,
        running(config(tmp_path, backend, local(tmp_path))) as server,
        Client(server.addresses["grpc"]) as client,
    ):
        connected(server)
        metadata = (("traceparent", traceparent()),)
        list(client.stream(iter([request("double", 1.0)] * 2), metadata=metadata))
        until(
            lambda: sum(s.name.endswith("ModelStreamInfer") for s in of_trace(backend)) == 2,
            "a span for each request of the stream",
        )
        url = f"http://{server.addresses['http']}/v2/models/double/infer"
        tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
        httpx.post(url, json={"inputs": [tensor]}, headers={"traceparent": traceparent()})
        over_http = served(backend, "POST /v2/models/{name}/infer")
        assert attributes(over_http)["http.response.status_code"] == 200
        unsampled, bad = "1" * 32, "2" * 32
        client.infer("double", 1.0, metadata=(("traceparent", traceparent(unsampled, "00")),))
        client.infer("double", 1.0, metadata=(("traceparent", f"00-{bad}-nonsense-01"),))
        with pytest.raises(grpc.RpcError):
            client.infer("nobody", 1.0, metadata=(("traceparent", traceparent("3" * 32)),))
        failed = served(backend, "inference.GRPCInferenceService/ModelInfer", "3" * 32)
        assert attributes(failed)["error.type"] == "NotFoundError"
        assert failed.status.code == 0  # the caller's mistake is no error of the server's
        assert of_trace(backend, unsampled) == []
        # With a context that cannot be read, a trace of its own begins.
        assert of_trace(backend, bad) == []
        until(
            lambda: [s for s in backend.spans if s.kind == SERVER and not s.parent_span_id],
            "a trace that begins here",
        )


def test_another_server_is_told_the_span_that_calls_it(tmp_path):
    """Two sidecars: what the second one calls its parent is the first one's CLIENT span."""
    behind, before = tmp_path / "behind", tmp_path / "before"
    behind.mkdir(), before.mkdir()
    there = {"version": "1", "name": "there", "roles": ["serving"]}
    with (
        GrpcReceiver() as backend,
        running(config(behind, backend, local(behind), sample_ratio=0)) as upstream,
    ):
        connected(upstream)
        variant = there | {"runtime": {"kind": "remote", "address": upstream.addresses["grpc"]}}
        with (
            running(config(before, backend, [variant], sample_ratio=0)) as server,
            Client(server.addresses["grpc"]) as client,
        ):
            connected(server)
            client.infer("double", 1.0, metadata=(("traceparent", traceparent()),))

            def servers():
                return len([s for s in of_trace(backend) if s.kind == SERVER]) == 2

            until(servers, "both servers' spans")
            spans = of_trace(backend)
            (call,) = [span for span in spans if span.kind == CLIENT]
            first, second = (
                next(s for s in spans if s.kind == SERVER and attributes(s)["variant"] == name)
                for name in ("there", "onnx")
            )
            assert first.parent_span_id.hex() == CALLER_SPAN
            assert call.parent_span_id == first.span_id
            assert second.parent_span_id == call.span_id


def test_log_records_know_the_trace_that_they_belong_to(tmp_path):
    """A server behind dies: that another variant answers is logged, and told with the trace."""
    behind, before = tmp_path / "behind", tmp_path / "before"
    behind.mkdir(), before.mkdir()
    there = {"version": "1", "name": "there", "roles": ["serving"]}
    variants = [variant | {"roles": ["fallback"]} for variant in local(before)[:1]]
    with GrpcReceiver() as backend, running(config(behind, backend, local(behind))) as upstream:
        variants.append(
            there | {"runtime": {"kind": "remote", "address": upstream.addresses["grpc"]}}
        )
        with (
            running(config(before, backend, variants, sample_ratio=0)) as server,
            Client(server.addresses["grpc"]) as client,
        ):
            connected(server)
            upstream.kill()
            client.infer("double", 1.0, metadata=(("traceparent", traceparent()),))

            def said():
                return [one for one in backend.records if one.trace_id.hex() == CALLER_TRACE]

            record = until(said, "the record")[0]
            assert "double:1/there failed, double:1/onnx answers" in record.body.string_value
            assert record.severity_number == 13
            root = served(backend, "inference.GRPCInferenceService/ModelInfer")
            assert record.span_id == root.span_id
            assert attributes(root)["fallback"] == "double:1/there"
            assert attributes(root)["variant"] == "onnx"
