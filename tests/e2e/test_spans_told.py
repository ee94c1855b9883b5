"""From a caller's header to a backend: spans, links, exemplars, log records, over real sockets."""

from __future__ import annotations

import os

import grpc
import httpx
import pytest
import yaml

from tests.e2e.support import LOCAL, Client, fails, onnx_times, request, running, until
from tests.support.otlp_receiver import GrpcReceiver, HttpReceiver

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"
NOT_SAMPLED = f"00-{'1' * 32}-{CALLER}-00"
SERVER = 2


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    def make(telemetry: dict, **more):
        model = onnx_times(tmp_path, 2, "double.onnx")
        runtime = {"kind": "onnxruntime", "path": model.name}
        variants = [
            {"version": "1", "name": name, "roles": [role], "runtime": runtime}
            for name, role in (("onnx", "serving"), ("ref", "reference"))
        ]
        tree = {
            "models": [{"name": "double", "variants": variants}],
            "gateway": {
                "grpc": {"address": LOCAL}, "http": {"address": LOCAL},
                "drain": {"delay_s": 0, "timeout_s": 2},
            },
            "monitor": {"grpc": LOCAL, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0}},
            "telemetry": telemetry, **more,
        }  # fmt: skip
        path = tmp_path / "sidecar.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return make


def attributes(span):
    values = {}
    for one in span.attributes:
        values[one.key] = getattr(one.value, one.value.WhichOneof("value"))
    return values


def named(spans, name):
    return [span for span in spans if span.name == name]


@pytest.mark.parametrize(
    ("exporter", "receiver"), [("otlp-grpc", GrpcReceiver), ("otlp-http", HttpReceiver)]
)
def test_a_request_its_stages_and_its_mirror(write, exporter, receiver):
    with receiver() as backend:
        config = write({"exporter": exporter, "endpoint": backend.endpoint})
        with running(config) as server:
            until(lambda: "mirroring to the monitor" in server.text, "a monitor", within_s=60)
            with Client(server.addresses["grpc"]) as client:
                for header in (SAMPLED, NOT_SAMPLED):
                    client.stub("ModelInfer")(
                        request("double", 1.0), timeout=20, metadata=[("traceparent", header)]
                    )
                with fails(grpc.StatusCode.NOT_FOUND):
                    client.infer("nobody", 1.0)
            until(lambda: named(backend.spans, "mirror.compare"), "the mirror is told")
            until(lambda: len([s for s in backend.spans if s.kind == SERVER]) == 2, "both requests")
            server.signal()
            assert server.wait() == 0
        check_spans(backend.spans)
        points = backend.metrics()["rpc.server.call.duration"].histogram.data_points
        exemplars = {one.trace_id.hex() for point in points for one in point.exemplars}
        assert TRACE in exemplars


def check_spans(spans):
    assert {span.trace_id.hex() for span in spans}.isdisjoint({"1" * 32})
    (served,) = [one for one in spans if one.kind == SERVER and one.trace_id.hex() == TRACE]
    assert served.name == "inference.GRPCInferenceService/ModelInfer"
    assert served.parent_span_id.hex() == CALLER
    assert attributes(served)["variant"] == "onnx"
    assert attributes(served)["rows"] == 1
    children = [one for one in spans if one.parent_span_id == served.span_id]
    assert {"queue", "execute"} <= {one.name for one in children}
    for child in children:
        assert served.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= served.end_time_unix_nano

    # Now and then the reference is run once more beside itself, for its noise.
    (mirror,) = [s for s in named(spans, "mirror.execute") if attributes(s)["role"] != "noise"]
    assert mirror.trace_id != served.trace_id
    assert mirror.parent_span_id == b""
    (link,) = mirror.links
    assert (link.trace_id, link.span_id) == (served.trace_id, served.span_id)
    assert attributes(mirror)["role"] == "reference"
    assert mirror.start_time_unix_nano >= served.end_time_unix_nano
    (compare,) = [s for s in named(spans, "mirror.compare") if s.trace_id == mirror.trace_id]
    assert (compare.trace_id, compare.parent_span_id) == (mirror.trace_id, mirror.span_id)
    assert attributes(compare)["verdict"] == "PASS"

    (unknown,) = [one for one in spans if attributes(one).get("error.type") == "NotFoundError"]
    assert unknown.kind == SERVER
    assert unknown.status.code == 0  # the caller's mistake


def test_http_has_its_own_names_and_the_gateways_log_is_told(write):
    with HttpReceiver() as backend:
        config = write(
            {"exporter": "otlp-http", "endpoint": backend.endpoint},
            log={"format": "json"},
        )
        with running(config) as server:
            until(lambda: "mirroring to the monitor" in server.text, "a monitor", within_s=60)
            url = f"http://{server.addresses['http']}/v2/models/double/infer"
            tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
            answer = httpx.post(
                url, json={"inputs": [tensor]}, headers={"traceparent": SAMPLED}, timeout=20
            )
            assert answer.status_code == 200
            until(lambda: [s for s in backend.spans if s.kind == SERVER], "the request")
            server.signal()
            assert server.wait() == 0
        (served,) = [span for span in backend.spans if span.kind == SERVER]
        assert served.name == "POST /v2/models/{name}/infer"
        assert attributes(served)["http.response.status_code"] == 200
        bodies = [one.body.string_value for one in backend.records]
        assert any("draining" in body for body in bodies)  # the gateway's, told by the monitor


def test_spans_go_on_with_the_next_monitor(write):
    with GrpcReceiver() as backend:
        config = write({"exporter": "otlp-grpc", "endpoint": backend.endpoint})
        with running(config) as server:

            def again(count: int) -> None:
                until(
                    lambda: server.text.count("mirroring to the monitor") == count,
                    "a monitor", within_s=60,
                )  # fmt: skip
                before = len([s for s in backend.spans if s.kind == SERVER])
                with Client(server.addresses["grpc"]) as client:
                    client.infer("double", 1.0)
                until(
                    lambda: len([s for s in backend.spans if s.kind == SERVER]) > before, "a span"
                )

            again(1)
            pid = int(server.text.rpartition("monitor: starting, pid ")[2].partition(";")[0])
            os.kill(pid, 9)
            again(2)
