"""``sidecar serve`` with nothing but its configuration, into real backends."""

from __future__ import annotations

import os

import grpc
import httpx
import pytest
import yaml

from exporters.instruments import INSTRUMENTS
from tests.backends.processes import NO_PROMETHEUS, READY_WITHIN_S, Prometheus, promtool, until
from tests.backends.test_prometheus import EXPLAINED
from tests.e2e.support import LOCAL, Client, fails, onnx_times, request, running
from tests.support.upstream import free_port

pytestmark = pytest.mark.timeout(READY_WITHIN_S + 180)

#: Of each transport another trace: Phoenix keeps a trace in the project where it came first.
TRACES = {
    "otlp-grpc": "4bf92f3577b34da6a3ce929d0e0e4736",
    "otlp-http": "0af7651916cd43dd8448eb211c80319c",
}
HTTP = "POST /v2/models/{name}/infer"
PARENT = "00f067aa0ba902b7"
TRACES_ALONE = {"metrics": {"exporter": "none"}, "logs": {"exporter": "none"}}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    """Writes a config with this ``telemetry``; its model has a reference, and all is mirrored."""

    def make(telemetry: dict):
        model = onnx_times(tmp_path, 2, "double.onnx")
        runtime = {"kind": "onnxruntime", "path": model.name}
        variants = [
            {"version": "1", "name": name, "roles": [role], "runtime": runtime}
            for name, role in (("ref", "reference"), ("onnx", "serving"))
        ]
        tree = {
            "models": [{"name": "double", "variants": variants}],
            "gateway": {
                "grpc": {"address": LOCAL}, "http": {"address": LOCAL},
                "drain": {"delay_s": 0, "timeout_s": 2},
            },
            "monitor": {"grpc": LOCAL, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0}},
            "telemetry": telemetry,
        }  # fmt: skip
        path = tmp_path / "sidecar.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return make


def await_monitor(server) -> None:
    """What is noted before a worker has found the monitor is dropped, and counted."""
    until(lambda: "mirroring to the monitor" in server.text, "the monitor", within_s=90)


def ask(server, trace: str) -> None:
    """Two calls of one trace over gRPC, one of them the caller's mistake; one over HTTP."""
    with Client(server.addresses["grpc"]) as client:
        metadata = [("traceparent", f"00-{trace}-{PARENT}-01")]
        client.infer("double", 1.0, metadata=metadata)
        with fails(grpc.StatusCode.NOT_FOUND):
            client.infer("nobody", 1.0, metadata=metadata)
    url = f"http://{server.addresses['http']}/v2/models/double/infer"
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    assert httpx.post(url, json={"inputs": [tensor]}, timeout=20).status_code == 200


@pytest.mark.parametrize("exporter", ["otlp-grpc", "otlp-http"])
def test_a_request_is_a_trace_in_phoenix(phoenix, write, exporter):
    project = f"serve-{exporter}"
    telemetry = {
        "exporter": exporter,
        "endpoint": phoenix.grpc if exporter == "otlp-grpc" else phoenix.url,
        "resource": {"openinference.project.name": project},
        **TRACES_ALONE,
    }
    with running(write(telemetry)) as server:
        await_monitor(server)
        ask(server, TRACES[exporter])
        names = {"mirror.execute", "mirror.compare", "queue", "execute", HTTP}
        found = phoenix.spans(project, names=names)
    served = [one for one in found if one["parent_id"] == PARENT]
    assert {one["context"]["trace_id"] for one in served} == {TRACES[exporter]}
    assert sorted(one["attributes"].get("error.type", "") for one in served) == [
        "", "NotFoundError"
    ]  # fmt: skip
    [answered] = [one for one in served if "error.type" not in one["attributes"]]
    assert answered["name"] == "inference.GRPCInferenceService/ModelInfer"
    attributes = answered["attributes"]
    assert (attributes["model.name"], attributes["model.version"]) == ("double", "1")
    children = [one for one in found if one["parent_id"] == answered["context"]["span_id"]]
    assert [one["name"] for one in sorted(children, key=lambda one: one["start_time"])] == [
        "queue", "execute"
    ]  # fmt: skip
    for one in children:
        assert answered["start_time"] <= one["start_time"]
        assert one["end_time"] <= answered["end_time"]
    [http] = [one for one in found if one["name"] == HTTP]
    assert http["parent_id"] is None
    mirrors = [one for one in found if one["name"] == "mirror.execute"]
    assert all(one["parent_id"] is None for one in mirrors)
    assert not {one["context"]["trace_id"] for one in mirrors} & {
        answered["context"]["trace_id"], http["context"]["trace_id"]
    }  # fmt: skip


@pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS)
def test_prometheus_scrapes_what_was_served(tmp_path, write):
    address = f"127.0.0.1:{free_port()}"
    telemetry = {"exporter": "prometheus", "prometheus": address}
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with (
        running(write(telemetry)) as server,
        Prometheus(folder, [address]) as prometheus,
        Client(server.addresses["grpc"]) as client,
    ):
        await_monitor(server)
        until(lambda: prometheus.vector("up == 1"), "the target is up")
        for _ in range(20):
            client.infer("double", 1.0)
        list(client.stream(iter([request("double", 1.0)])))
        query = 'model_sidecar_requests_total{model_name="double",outcome="success"} == 21'
        until(lambda: prometheus.vector(query), "all requests are counted")
        [(labels, _)] = prometheus.vector(query)
        assert (labels["model_version"], labels["variant"]) == ("1", "onnx")
        calls = prometheus.vector("rpc_server_call_duration_seconds_count")
        assert sorted((one["rpc_method"].rpartition("/")[2], n) for one, n in calls) == [
            ("ModelInfer", 20), ("ModelStreamInfer", 1),
        ]  # fmt: skip
        bucket = 'model_sidecar_inference_duration_seconds_bucket{stage="execute",role="serving"}'
        [(_, p99)] = prometheus.vector(f"histogram_quantile(0.99, sum by (le) ({bucket}))")
        assert 0 < p99 < 10
        query = 'model_sidecar_mirror_exchanges_total{outcome="compared"} >= 20'
        until(lambda: prometheus.vector(query), "all that can be mirrored is compared")
        [(_, rate)] = prometheus.vector("model_sidecar_comparison_disagreement_rate_ratio")
        assert rate == 0
        known = {one.prometheus_name for one in INSTRUMENTS}
        metadata = set(prometheus.api("metadata")) - {"target"}
        assert metadata <= {one.removesuffix("_total") for one in known}
        page = httpx.get(f"http://{address}/metrics", timeout=20).content
        status, output = promtool("check", "metrics", given=page)
        assert set(output.splitlines()) <= set(EXPLAINED)
        assert status in {0, 3}
